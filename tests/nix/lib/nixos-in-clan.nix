# What Clan's own modules and sops-nix need of NixOS beyond what ours do.
{ lib, ... }:
let
  raw = lib.mkOption {
    type = lib.types.raw;
    default = false;
    description = "As in NixOS.";
  };
in
{
  options = {
    systemd.sysusers.enable = raw;
    boot.initrd = lib.mkOption {
      type = lib.types.attrsOf lib.types.anything;
      default = { };
      description = "As in NixOS.";
    };
  };
}
