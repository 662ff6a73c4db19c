# Stands in for sops-nix where no checkout was given: the options that Muster's modules set.
{ lib, pkgs, ... }:
let
  option =
    type: default:
    lib.mkOption {
      inherit type default;
      description = "As in sops-nix.";
    };
in
{
  options.sops = {
    secrets = option (lib.types.attrsOf lib.types.attrs) { };
    age.keyFile = option (lib.types.nullOr lib.types.str) null;
    environment = option (lib.types.attrsOf lib.types.str) { };
    package = option lib.types.package pkgs.sops-install-secrets;
  };
  config.system.build.sops-nix-manifest = pkgs.writeText "manifest.json" "";
}
