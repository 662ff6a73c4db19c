# One private ZeroTier network: a controller on NixOS, peers on both classes.
{ lib, directory, ... }:
let
  peerOptions = {
    options = {
      allowManaged = lib.mkOption {
        type = lib.types.bool;
        default = true;
        description = "Whether the network gives this machine its addresses and routes.";
      };
      allowGlobal = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether the network may give this machine addresses and routes of the internet.";
      };
      allowDefault = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether the network may become this machine's default route.";
      };
      allowDNS = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether the network may set this machine's DNS servers.";
      };
      port = lib.mkOption {
        type = lib.types.port;
        default = 9993;
        description = "The UDP port. A machine in several networks has one for all of them.";
      };
      localConf = lib.mkOption {
        type = lib.types.attrsOf lib.types.anything;
        default = { };
        example = {
          settings.interfacePrefixBlacklist = [ "docker" ];
        };
        description = "What ZeroTier's local.conf says on this machine.";
      };
    };
  };
  permissions =
    settings:
    lib.getAttrs [
      "allowManaged"
      "allowGlobal"
      "allowDefault"
      "allowDNS"
    ] settings;

  # What a member of either role has, on either class.
  member =
    class: role:
    {
      instanceName,
      settings,
      roles,
      machine,
      ...
    }:
    {
      config,
      options,
      pkgs,
      ...
    }:
    let
      vars = import ../common/vars.nix {
        inherit
          lib
          config
          options
          class
          ;
      };
      fleet = import ./fleet.nix {
        inherit
          lib
          vars
          instanceName
          roles
          ;
        machine = machine.name;
      };
      generators = import ./generators.nix {
        inherit pkgs;
        package = pkgs.zerotierone;
        machine = machine.name;
        unit = if class == "nixos" then "zerotierone.service" else "org.nixos.zerotierone";
      };
    in
    {
      imports = [ (if class == "nixos" then ./nixos.nix else ./darwin.nix) ];
      config = lib.mkMerge [
        {
          muster.zerotier = {
            inherit (settings) port localConf;
            identity = (vars.file "zerotier-identity-${machine.name}" "identity-secret").path;
            fingerprint = vars.fingerprint "zerotier-identity-${machine.name}" "identity-secret";
            networks = lib.optionalAttrs (fleet.network != null) {
              ${fleet.network} = permissions settings;
            };
          };
          muster.networks.${instanceName}.hosts = lib.mapAttrs (name: known: {
            inherit (known) addresses;
            names = [ "${name}.${fleet.domain}" ];
          }) (if fleet.network == null then { } else fleet.known);
        }
        # A controller that is also a peer declares it once.
        (lib.mkIf (role == "controller" || !(roles.controller.machines or { } ? ${machine.name})) {
          inherit (fleet) warnings assertions;
        })
        (vars.declare generators.identity)
      ];
    };

  exportsOf =
    arguments:
    let
      fleet = import ./fleet.nix {
        inherit lib;
        inherit (arguments) instanceName roles;
        machine = arguments.machine.name;
        vars.public = import ../common/public.nix { inherit lib directory; };
      };
      known = fleet.known.${arguments.machine.name} or { addresses = [ ]; };
    in
    arguments.mkExports { peer.hosts = map (plain: { inherit plain; }) known.addresses; };
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/zerotier";
    description = "A private ZeroTier network that machines of both classes join by themselves";
    categories = [ "Network" ];
    readme = builtins.readFile ./README.md;
    exports.out = [ "peer" ];
    constraints.roles.controller = {
      minMachines = 1;
      maxMachines = 1;
    };
  };

  roles.peer = {
    description = "A member of the network, on NixOS or a Mac.";
    interface = peerOptions;
    perInstance =
      arguments@{
        instanceName,
        settings,
        roles,
        machine,
        mkExports,
        ...
      }:
      {
        exports = exportsOf arguments;
        nixosModule = member "nixos" "peer" arguments;
        darwinModule = member "darwin" "peer" arguments;
      };
  };

  roles.controller = {
    description = "The NixOS host that says who is a member, and is one itself.";
    interface = {
      imports = [ peerOptions ];
      options = {
        domain = lib.mkOption {
          type = lib.types.nullOr lib.types.str;
          default = null;
          example = "zt";
          description = "The domain of the members' names; the instance's name, if null.";
        };
        addressing = lib.mkOption {
          type = lib.types.listOf (
            lib.types.enum [
              "rfc4193"
              "6plane"
            ]
          );
          default = [ "rfc4193" ];
          description = "How members get their IPv6 addresses: one each (rfc4193), or a network of 80 bits each (6plane).";
        };
        public = lib.mkOption {
          type = lib.types.bool;
          default = false;
          description = "Whether everyone who knows the network's id may join.";
        };
        allowedNodes = lib.mkOption {
          type = lib.types.listOf (lib.types.strMatching "[0-9a-f]{10}");
          default = [ ];
          example = [ "deadbeef01" ];
          description = "Nodes outside the fleet that may join too, such as a telephone.";
        };
        network = lib.mkOption {
          type = lib.types.attrsOf lib.types.anything;
          default = { };
          example = {
            mtu = 1400;
            routes = [ { target = "10.20.0.0/24"; } ];
          };
          description = "More of the network's configuration, in the words of the controller's API.";
        };
      };
    };
    perInstance =
      arguments@{
        instanceName,
        settings,
        roles,
        machine,
        mkExports,
        ...
      }:
      {
        exports = exportsOf arguments;
        nixosModule = {
          imports = [
            (member "nixos" "controller" arguments)
            (import ./controller.nix {
              inherit
                lib
                instanceName
                settings
                roles
                machine
                ;
            })
          ];
        };
      };
  };
}
