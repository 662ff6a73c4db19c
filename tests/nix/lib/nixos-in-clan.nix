# Where Clan's own modules want options of NixOS and of its inputs that ours do not: accepted as they come.
{ lib, ... }:
{
  options = {
    sops = lib.mkOption {
      type = lib.types.submodule { freeformType = lib.types.attrsOf lib.types.anything; };
      default = { };
      description = "Stands for sops-nix on NixOS.";
    };
  };
}
