# lib.mkFleet with the parts that tests have: the real nix-darwin, and a stub of NixOS's options.
t:
{
  inventory,
  # The flake's source, with `vars/`.
  directory,
  machines ? { },
}:
let
  muster = import (t.repository + "/nix") {
    baseModules = {
      nixos = [ (t.repository + "/nix/modules/secrets-nixos.nix") ];
      darwin = [ (t.repository + "/nix/modules/secrets-darwin.nix") ];
    };
  };
in
muster.mkFleet {
  inherit inventory machines;
  self = {
    outPath = directory;
    inputs = { };
  };
  sops-nix = t.sops-nix-flake;
  nixpkgs.lib = t.lib // {
    nixosSystem = t.nixos;
  };
  nix-darwin.lib.darwinSystem = t.darwin;
  inputs = { };
}
