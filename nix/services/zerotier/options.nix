# The combined options of all zerotier instances on one machine, which runs one daemon.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  imports = [
    ../../modules/vars.nix
    ../../modules/networks.nix
  ];

  options.muster.zerotier = {
    networks = mkOption {
      type = types.attrsOf (types.attrsOf types.bool);
      default = { };
      description = "The networks to join, by their ids, and what each may do here.";
    };
    controller = mkOption {
      type = types.bool;
      default = false;
      description = "Whether this machine is the controller of a network.";
    };
    port = mkOption {
      type = types.port;
      default = 9993;
      description = "The UDP port, and the TCP port of the daemon's API on the loopback address.";
    };
    identity = mkOption {
      type = types.str;
      description = "The file with the machine's secret identity.";
    };
    fingerprint = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "What changes when the identity does.";
    };
    localConf = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      description = "The daemon's local.conf.";
    };
  };
}
