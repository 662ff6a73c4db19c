# A custom service, in Clan's form: collects garbage at night.
{ lib, ... }:
{
  _class = "clan.service";
  manifest = {
    name = "quiet-hours";
    description = "Garbage is collected at night";
    categories = [ "System" ];
    readme = "Set `hour` to the hour at which it begins.";
  };

  roles.default = {
    description = "Collects its garbage at night.";
    interface.options.hour = lib.mkOption {
      type = lib.types.ints.between 0 23;
      default = 3;
      description = "When it begins.";
    };
    perInstance =
      { settings, ... }:
      {
        nixosModule.nix.gc = {
          automatic = true;
          dates = "${lib.fixedWidthNumber 2 settings.hour}:00";
        };
      };
  };
}
