# What the fleet's networks offer to the machine's other services: their members and the members' addresses.
# Networks (zerotier, wireguard) write it; hosts, sshd, the exporter and the backups read it.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  host = {
    options = {
      addresses = mkOption {
        type = types.listOf types.str;
        description = "The machine's addresses in this network, the first of them the one to use.";
      };
      names = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "The machine's names in this network.";
      };
    };
  };
in
{
  options.muster.names = mkOption {
    type = types.attrsOf (types.listOf types.str);
    default = { };
    description = "Full names under which this machine finds others, by their names in the fleet; the service hosts writes them.";
  };
  options.muster.networks = mkOption {
    type = types.attrsOf (
      types.submodule {
        options.hosts = mkOption {
          type = types.attrsOf (types.submodule host);
          default = { };
          description = "The network's machines, by their names in the fleet.";
        };
      }
    );
    default = { };
    description = "The networks that this machine is in, by the instance that makes them.";
  };
}
