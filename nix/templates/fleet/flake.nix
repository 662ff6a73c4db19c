{
  description = "A fleet of Macs and NixOS hosts";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";
    nix-darwin.url = "github:nix-darwin/nix-darwin";
    nix-darwin.inputs.nixpkgs.follows = "nixpkgs";
    # CHANGE THIS LINE: where you have Muster from, for example git+https://… or path:/….
    muster.url = "git+https://git.example.org/muster";
    muster.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { self, muster, ... }:
    muster.lib.mkFleet {
      inherit self;
      inventory = ./inventory.nix;
    };
}
