# Stands in for sops-nix where no checkout was given: the options that Clan sets, and where secrets are.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  raw =
    default:
    mkOption {
      type = types.raw;
      inherit default;
      description = "As in sops-nix.";
    };
in
{
  options.sops = {
    age.keyFile = raw null;
    defaultSopsFile = raw null;
    validateSopsFiles = raw true;
    secrets = mkOption {
      default = { };
      description = "As in sops-nix.";
      type = types.attrsOf (
        types.submodule (
          { name, config, ... }:
          {
            freeformType = types.attrsOf types.anything;
            options.neededForUsers = raw false;
            options.path = raw (if config.neededForUsers then "/run/secrets-for-users/${name}" else "/run/secrets/${name}");
          }
        )
      );
    };
  };
}
