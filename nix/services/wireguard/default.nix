# A WireGuard network: reachable controllers on NixOS, peers on both classes.
{ lib, directory, ... }:
let
  common = {
    options = {
      port = lib.mkOption {
        type = lib.types.port;
        default = 51820;
        description = "The UDP port of the interface.";
      };
      mtu = lib.mkOption {
        type = lib.types.nullOr lib.types.ints.positive;
        default = null;
        description = "The interface's MTU; found out by the system, if null.";
      };
      domain = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        description = "The domain of this machine's name in the network; the instance's name, if null.";
      };
    };
  };

  fleetOf =
    vars: arguments:
    import ./fleet.nix {
      inherit lib vars;
      inherit (arguments) instanceName roles;
    };

  generators = pkgs: instanceName: units: {
    "wireguard-keys-${instanceName}" = {
      files.privatekey.restartUnits = units;
      files.publickey.secret = false;
      runtimeInputs = [ pkgs.wireguard-tools ];
      script = ''
        wg genkey > "$out"/privatekey
        wg pubkey < "$out"/privatekey > "$out"/publickey
      '';
    };
    # A random prefix of the unique local addresses (RFC 4193), so that two fleets that meet do not collide.
    "wireguard-prefix-${instanceName}" = {
      share = true;
      files.prefix.secret = false;
      runtimeInputs = [ pkgs.coreutils ];
      script = ''
        printf 'fd%s0000' "$(od -A n -N 5 -t x1 /dev/urandom | tr -d ' \n')" > "$out"/prefix
      '';
    };
  };

  # What both roles and both classes have.
  member =
    class: interface: arguments@{ instanceName, machine, settings, ... }:
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
      fleet = fleetOf vars arguments;
      domainOf =
        name:
        let
          inherit ((fleet.controllers // fleet.peers).${name}) settings;
        in
        if settings.domain == null then instanceName else settings.domain;
    in
    {
      imports = [
        ../../modules/vars.nix
        ../../modules/networks.nix
      ];
      config = lib.mkMerge [
        {
          assertions = fleet.assertionsFor machine.name;
          warnings = fleet.warningsFor machine.name;
          muster.networks.${instanceName}.hosts = lib.optionalAttrs fleet.ready (
            lib.genAttrs fleet.known (name: {
              addresses = [ (fleet.address name) ];
              names = [ "${name}.${domainOf name}" ];
            })
          );
        }
        (vars.declare (
          generators pkgs instanceName (
            if class == "darwin" then
              [ "org.nixos.wireguard-${instanceName}" ]
            else if config.networking.useNetworkd then
              [ "systemd-networkd.service" ]
            else
              [ "wireguard-${instanceName}.service" ]
          )
        ))
        (lib.mkIf fleet.ready (interface {
          inherit
            lib
            config
            pkgs
            vars
            fleet
            instanceName
            settings
            ;
          self = machine.name;
          keyFile = (vars.file "wireguard-keys-${instanceName}" "privatekey").path;
          fingerprint = vars.fingerprint "wireguard-keys-${instanceName}" "privatekey";
        }))
      ];
    };

  nixos =
    {
      fleet,
      instanceName,
      settings,
      self,
      keyFile,
      ...
    }:
    {
      networking.wireguard.interfaces.${instanceName} = {
        ips = [ "${fleet.address self}/64" ];
        listenPort = if fleet.controllers ? ${self} then settings.port else null;
        inherit (settings) mtu;
        privateKeyFile = keyFile;
        peers = fleet.links self;
      };
    };

  exportsOf =
    arguments:
    let
      fleet = fleetOf {
        public = import ../common/public.nix { inherit lib directory; };
      } arguments;
    in
    arguments.mkExports {
      peer.hosts = lib.optional (fleet.ready && lib.elem arguments.machine.name fleet.known) {
        plain = fleet.address arguments.machine.name;
      };
    };
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/wireguard";
    description = "A WireGuard network with addresses by name, for both classes";
    categories = [ "Network" ];
    readme = builtins.readFile ./README.md;
    exports.out = [ "peer" ];
    constraints.roles.controller.minMachines = 1;
  };

  roles.peer = {
    description = "A machine that reaches the network through its controller, on NixOS or a Mac.";
    interface = {
      imports = [ common ];
      options.controller = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "cinnabar";
        description = "The controller that routes for this machine; not needed where there is only one.";
      };
    };
    perInstance =
      arguments@{
        instanceName,
        machine,
        settings,
        roles,
        mkExports,
        ...
      }:
      {
        exports = exportsOf arguments;
        nixosModule = member "nixos" nixos arguments;
        darwinModule = member "darwin" (import ./darwin.nix) arguments;
      };
  };

  roles.controller = {
    description = "A NixOS host with a public endpoint, which routes between peers.";
    interface = {
      imports = [ common ];
      options.endpoint = lib.mkOption {
        type = lib.types.str;
        example = "cinnabar.example.org";
        description = "The name or address under which peers find this host, without the port.";
      };
    };
    perInstance =
      arguments@{
        instanceName,
        machine,
        settings,
        roles,
        mkExports,
        ...
      }:
      {
        exports = exportsOf arguments;
        nixosModule = {
          imports = [ (member "nixos" nixos arguments) ];
          boot.kernel.sysctl."net.ipv6.conf.all.forwarding" = 1;
          networking.firewall.allowedUDPPorts = [ settings.port ];
        };
      };
  };
}
