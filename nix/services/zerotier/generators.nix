# Generates a member's identity, and the network's ID. The names and files are those of Clan's own zerotier,
# so its fleets keep their identities, networks and addresses; zerotier-node is new.
{
  pkgs,
  package,
  machine,
  unit,
}:
{
  identity = {
    "zerotier-identity-${machine}" = {
      share = true;
      files.identity-secret.restartUnits = [ unit ];
      runtimeInputs = [ package ];
      script = ''
        zerotier-idtool generate "$out"/identity-secret
      '';
    };
    "zerotier-node-${machine}" = {
      share = true;
      files.identity-public.secret = false;
      dependencies = [ "zerotier-identity-${machine}" ];
      runtimeInputs = [ pkgs.coreutils ];
      script = ''
        cut -d : -f 1-3 "$in"/zerotier-identity-${machine}/identity-secret > "$out"/identity-public
      '';
    };
  };

  # Made only for the controller: the ID begins with its node's.
  network = instanceName: {
    "zerotier-network-${instanceName}" = {
      share = true;
      files.network-id.secret = false;
      dependencies = [ "zerotier-identity-${machine}" ];
      runtimeInputs = [ pkgs.coreutils ];
      script = ''
        number=000000
        while [ "$number" = 000000 ]; do
          number=$(od -A n -N 3 -t x1 /dev/urandom | tr -d ' \n')
        done
        node=$(cut -d : -f 1 "$in"/zerotier-identity-${machine}/identity-secret)
        printf %s "$node$number" > "$out"/network-id
      '';
    };
  };
}
