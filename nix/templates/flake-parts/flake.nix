{
  description = "A fleet of Macs and NixOS hosts, with flake-parts";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";
    nix-darwin.url = "github:nix-darwin/nix-darwin";
    nix-darwin.inputs.nixpkgs.follows = "nixpkgs";
    flake-parts.url = "github:hercules-ci/flake-parts";
    flake-parts.inputs.nixpkgs-lib.follows = "nixpkgs";
    # CHANGE THIS LINE: where you have Muster from, for example git+https://… or path:/….
    muster.url = "git+https://git.example.org/muster";
    muster.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    inputs:
    inputs.flake-parts.lib.mkFlake { inherit inputs; } {
      imports = [ inputs.muster.flakeModules.default ];
      systems = [
        "x86_64-linux"
        "aarch64-darwin"
      ];
      muster.fleet.inventory = ./inventory.nix;
      perSystem =
        { pkgs, ... }:
        {
          devShells.default = pkgs.mkShell { packages = [ pkgs.nixfmt ]; };
        };
    };
}
