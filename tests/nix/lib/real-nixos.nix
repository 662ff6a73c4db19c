# All services on two hosts, evaluated by NixOS itself: `nix flake check` where nixpkgs is available. No host
# is built; the result is a file with the paths of their systems.
{
  pkgs,
  nixpkgs,
  muster,
}:
let
  inherit (pkgs) lib;
  fleet = (import ../../../nix { }).mkFleet {
    self = {
      outPath = ./source;
      inputs = { };
    };
    inherit nixpkgs;
    inputs = { };
    inventory = {
      machines = lib.genAttrs [ "cinnabar" "electrum" ] (_: {
        machineClass = "nixos";
        inherit (pkgs.stdenv.hostPlatform) system;
      });
      instances = import ./everything.nix { };
    };
    machines = lib.genAttrs [ "cinnabar" "electrum" ] (_: {
      imports = [
        muster.nixosModules.muster-agent
        muster.nixosModules.muster-controller
      ];
      services.muster-agent.enable = true;
      services.muster-controller.enable = true;
      boot.loader.grub.enable = false;
      fileSystems."/" = {
        device = "none";
        fsType = "tmpfs";
      };
      nixpkgs.config.allowUnfreePredicate = package: lib.getName package == "zerotierone";
      system.stateVersion = lib.trivial.release;
    });
  };
in
pkgs.writeText "services-on-nixos" (
  lib.concatMapStrings (
    one: builtins.unsafeDiscardStringContext one.config.system.build.toplevel.drvPath + "\n"
  ) (lib.attrValues fleet.nixosConfigurations)
)
