# The fleet's names: /etc/hosts on NixOS; on a Mac, whose /etc/hosts belongs to macOS, a resolver for the
# fleet's domain.
{ lib, ... }:
let
  # { NAME = [ addresses ]; } of every machine in the instance and in this machine's networks.
  entriesOf =
    { settings, roles, ... }:
    config:
    let
      short =
        name: addresses: { names = [ name ]; inherit addresses; };
      own = lib.mapAttrsToList (name: machine: short name machine.settings.addresses) roles.default.machines;
      extra = lib.mapAttrsToList short settings.entries;
      inNetworks = lib.concatMap (
        network: lib.mapAttrsToList (name: host: short name host.addresses) network.hosts
      ) (lib.attrValues config.muster.networks);
      all = own ++ extra ++ inNetworks;
    in
    lib.mapAttrs (_: lib.unique) (
      lib.zipAttrsWith (_: lib.concatLists) (map (entry: lib.genAttrs entry.names (_: entry.addresses)) all)
    );
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/hosts";
    description = "The fleet's machines by name, on both classes";
    categories = [ "Network" ];
    readme = builtins.readFile ./README.md;
  };

  roles.default = {
    description = "Finds the fleet's machines by name.";
    interface.options = {
      domain = lib.mkOption {
        type = lib.types.nullOr (lib.types.strMatching "[a-z0-9]([a-z0-9.-]*[a-z0-9])?");
        default = null;
        example = "fleet.internal";
        description = "The domain of the names; the instance's name, if null. On a Mac names are found in it alone.";
      };
      addresses = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "192.0.2.7" ];
        description = "This machine's fixed addresses, for the others. Those in a network of the fleet are known.";
      };
      entries = lib.mkOption {
        type = lib.types.attrsOf (lib.types.listOf lib.types.str);
        default = { };
        example = { printer = [ "192.0.2.9" ]; };
        description = "Other hosts by name, with their addresses.";
      };
      nameservers = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "192.0.2.53" ];
        description = "DNS servers of the domain that Macs ask; otherwise each Mac answers for itself.";
      };
      port = lib.mkOption {
        type = lib.types.nullOr lib.types.port;
        default = null;
        example = 53535;
        description = "The port on the loopback address on which a Mac answers for itself; one of the instance's own, if null.";
      };
    };
    perInstance =
      instance@{ instanceName, settings, roles, ... }:
      let
        domain = if settings.domain == null then instanceName else settings.domain;
        # An instance with another name gets another port, derived from its name.
        own = (builtins.fromTOML "n = 0x${builtins.substring 0 6 (builtins.hashString "sha256" instanceName)}").n;
        port =
          if settings.port != null then
            settings.port
          else if instanceName == "hosts" then
            53535
          else
            53536 + own - own / 8192 * 8192;
        namesOf = lib.mapAttrs (name: _: [ "${name}.${domain}" ]);
      in
      {
        nixosModule =
          { config, ... }:
          {
            imports = [ ../../modules/networks.nix ];
            muster.names = namesOf (entriesOf instance config);
            networking.hosts = lib.zipAttrsWith (_: lib.concatLists) (
              lib.concatLists (
                lib.mapAttrsToList (
                  name: addresses:
                  map (address: {
                    ${address} = [
                      "${name}.${domain}"
                      name
                    ];
                  }) addresses
                ) (entriesOf instance config)
              )
            );
          };

        darwinModule =
          { config, pkgs, ... }:
          let
            launchd = import ../common/launchd.nix { inherit lib; };
            entries = entriesOf instance config;
            text = lib.concatStrings (
              lib.concatLists (
                lib.mapAttrsToList (name: map (address: "${address} ${name}.${domain}\n")) entries
              )
            );
            answersItself = settings.nameservers == [ ];
          in
          {
            imports = [
              ../../modules/networks.nix
              ./ports.nix
            ];
            muster.names = namesOf entries;
            muster.hostsPorts = lib.optionalAttrs answersItself { ${instanceName} = port; };
            environment.etc."resolver/${domain}".text =
              if answersItself then
                "nameserver 127.0.0.1\nport ${toString port}\n"
              else
                lib.concatMapStrings (server: "nameserver ${server}\n") settings.nameservers;
            launchd.daemons = lib.optionalAttrs answersItself {
              "hosts-${instanceName}".serviceConfig = launchd.daemon {
                name = "hosts-${instanceName}";
                program = [
                  (lib.getExe' pkgs.dnsmasq "dnsmasq")
                  "--keep-in-foreground"
                  "--conf-file=/dev/null"
                  "--no-resolv"
                  "--no-hosts"
                  "--bind-interfaces"
                  "--listen-address=127.0.0.1"
                  "--port=${toString port}"
                  "--local=/${domain}/"
                  "--local-ttl=60"
                  "--addn-hosts=${pkgs.writeText "hosts-${instanceName}" text}"
                  "--pid-file="
                ];
                configuration = {
                  inherit text domain port;
                };
              };
            };
          };
      };
  };
}
