{
  description = "NixOS hosts and Macs that Muster updates, in a plain flake";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";
    nix-darwin.url = "github:nix-darwin/nix-darwin";
    nix-darwin.inputs.nixpkgs.follows = "nixpkgs";
    # CHANGE THIS LINE: where you have Muster from, for example git+https://… or path:/….
    muster.url = "git+https://git.example.org/muster";
    muster.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      nixpkgs,
      nix-darwin,
      muster,
      ...
    }:
    {
      nixosConfigurations.server = nixpkgs.lib.nixosSystem {
        modules = [
          muster.nixosModules.default
          ./server.nix
        ];
      };
      darwinConfigurations.laptop = nix-darwin.lib.darwinSystem {
        modules = [
          muster.darwinModules.default
          ./laptop.nix
        ];
      };

      # What must hold on a machine for an update to stay.
      muster.machines.server.checks.ssh.tcp = "127.0.0.1:22";
    };
}
