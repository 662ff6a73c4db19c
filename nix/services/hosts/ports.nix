# Which instance answers on which port of a Mac. Two on one port would leave one of them without its names.
{ lib, config, ... }:
let
  ports = config.muster.hostsPorts;
  same = lib.filter (names: lib.length names > 1) (
    lib.attrValues (lib.groupBy (name: toString ports.${name}) (lib.attrNames ports))
  );
in
{
  options.muster.hostsPorts = lib.mkOption {
    type = lib.types.attrsOf lib.types.port;
    default = { };
    internal = true;
    description = "The ports on which this Mac answers for the instances of the service hosts.";
  };
  config.assertions = map (names: {
    assertion = false;
    message = "instances.${lib.concatStringsSep " and instances." names} have one port on this Mac, ${
      toString ports.${lib.head names}
    }. Set another settings.port for one of them.";
  }) same;
}
