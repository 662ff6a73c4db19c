# Prometheus's node exporter, for machines of both classes.
{ lib, ... }:
let
  collectors =
    description:
    lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      inherit description;
    };

  # Where it listens: the address in a network of the fleet, or the configured one.
  listenAddress =
    { instanceName, machine, settings, ... }:
    config:
    let
      ipv6 = import ../common/ipv6.nix;
      network = config.muster.networks.${settings.network} or (throw "instances.${instanceName}: ${machine.name} is in no network ${settings.network}. Networks are instances of zerotier or wireguard.");
      host = network.hosts.${machine.name} or (throw "instances.${instanceName}: ${machine.name} has no address in ${settings.network} yet. Generate its variables.");
    in
    ipv6.bracketed (if settings.network == null then settings.listenAddress else lib.head host.addresses);

  exporter =
    own: instance@{ settings, ... }:
    config: {
      enable = true;
      inherit (settings) port extraFlags;
      listenAddress = listenAddress instance config;
      enabledCollectors = settings.enabledCollectors ++ settings."${own}Collectors";
      inherit (settings) disabledCollectors;
    };
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/node-exporter";
    description = "Figures of machines of both classes, for Prometheus";
    categories = [ "System" ];
    readme = builtins.readFile ./README.md;
  };
  roles.default = {
    description = "Shows the machine's figures.";
    interface.options = {
      port = lib.mkOption {
        type = lib.types.port;
        default = 9100;
        description = "The TCP port.";
      };
      listenAddress = lib.mkOption {
        type = lib.types.str;
        default = "127.0.0.1";
        example = "0.0.0.0";
        description = "The address to listen at. Whoever reaches it reads the figures.";
      };
      network = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = null;
        example = "zerotier";
        description = "An instance of zerotier or wireguard, to listen at the machine's address in it.";
      };
      openFirewall = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether to open the port in the firewall of NixOS hosts.";
      };
      enabledCollectors = collectors "Collectors to add to node exporter's own choice, on both classes.";
      disabledCollectors = collectors "Collectors to leave out, on both classes.";
      nixosCollectors = collectors "Collectors to add on NixOS hosts." // {
        default = [ "systemd" ];
      };
      darwinCollectors = collectors "Collectors to add on Macs.";
      extraFlags = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        description = "Further arguments.";
      };
    };
    perInstance = instance@{ instanceName, machine, settings, ... }: {
      nixosModule =
        { config, ... }:
        {
          imports = [ ../../modules/networks.nix ];
          services.prometheus.exporters.node = exporter "nixos" instance config // {
            inherit (settings) openFirewall;
          };
        };
      darwinModule =
        { config, ... }:
        let
          launchd = import ../common/launchd.nix { inherit lib; };
        in
        {
          imports = [ ../../modules/networks.nix ];
          services.prometheus.exporters.node = exporter "darwin" instance config;
          # nix-darwin's own daemon, which waits for /nix; it gets the hash that our daemons have.
          launchd.daemons.prometheus-node-exporter.serviceConfig.EnvironmentVariables.MUSTER_CONFIGURATION =
            launchd.fingerprint (exporter "darwin" instance config);
        };
    };
  };
}
