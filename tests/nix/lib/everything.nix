# An instance of every service, for the machines of ./machines.nix.
{
  # Macs of the fleet, if it has any.
  macs ? [ ],
}:
let
  all = settings: { tags.all = { inherit settings; }; };
  on = machines: settings: builtins.listToAttrs (map (name: { inherit name; value = { inherit settings; }; }) machines);
in
{
  caches = {
    module.name = "trusted-nix-caches";
    roles.default = all {
      caches.ours = {
        url = "https://cache.example.org";
        publicKeys = [ "cache.example.org-1:QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=" ];
      };
    };
  };
  packages = {
    module.name = "packages";
    roles.default = all { packages = [ "ripgrep" ]; };
  };
  sshd = {
    module.name = "sshd";
    roles.server = all { authorizedKeys.alice = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA alice"; };
    roles.client.tags = [ "all" ];
  };
  zt = {
    module.name = "zerotier";
    roles.controller.machines.cinnabar = { };
    roles.peer.machines = on ([ "electrum" ] ++ macs) { };
  };
  figures = {
    module.name = "node-exporter";
    roles.default = all { network = "zt"; };
  };
  nightly = {
    module.name = "borgbackup";
    roles.server.machines.cinnabar.settings.network = "zt";
    roles.client.machines = on ([ "electrum" ] ++ macs) { folders = [ "/srv" ]; };
  };
  wg = {
    module.name = "wireguard";
    roles.controller.machines.cinnabar.settings.endpoint = "cinnabar.example.org";
    roles.peer.machines = on ([ "electrum" ] ++ macs) { };
  };
  hosts = {
    module.name = "hosts";
    roles.default = all { domain = "fleet.internal"; };
  };
  alice = {
    module.name = "users";
    roles.default = all { uid = 1502; };
  };
  sync = {
    module.name = "syncthing";
    roles.peer.machines = on ([ "electrum" ] ++ macs) { folders.documents.path = "/srv/documents"; };
  };
}
