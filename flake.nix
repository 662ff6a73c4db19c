{
  description = "Muster keeps a fleet of Macs and NixOS hosts on the system that their operators signed";

  # Rust 1.95 or newer is needed, hence the newest nixpkgs.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forAllSystems = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
        "x86_64-darwin"
      ];
      pkgsOf = system: nixpkgs.legacyPackages.${system};
      workspace = (lib.importTOML ./Cargo.toml).workspace;

      program =
        pkgs: name: description:
        pkgs.rustPlatform.buildRustPackage {
          pname = name;
          inherit (workspace.package) version;
          # What cargo reads, so that a changed document or test script rebuilds nothing.
          src = lib.fileset.toSource {
            root = ./.;
            fileset = lib.fileset.unions [
              ./Cargo.toml
              ./Cargo.lock
              ./clippy.toml
              ./protocol
              ./agent
              ./controller
              ./tests/testbed
            ];
          };
          cargoLock.lockFile = ./Cargo.lock;
          cargoBuildFlags = [
            "--package"
            name
          ];
          cargoTestFlags = [
            "--package"
            name
            "--package"
            "muster-protocol"
            # Those that need Nix and a network are run by tests/run.
            "--lib"
          ];
          meta = {
            inherit description;
            license = [
              lib.licenses.mit
              lib.licenses.asl20
            ];
            mainProgram = name;
            platforms = lib.platforms.unix;
          };
        };

      # The module with this flake's package.
      withPackage =
        module: service: name:
        { pkgs, lib, ... }:
        {
          imports = [ module ];
          services.${service}.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.${name};
        };
    in
    {
      packages = forAllSystems (
        system:
        let
          pkgs = pkgsOf system;
        in
        rec {
          muster-agent = program pkgs "muster-agent" "Muster's agent, the program on each machine";
          muster = program pkgs "muster" "Muster's server and the operators' command line";
          default = muster;
        }
      );

      nixosModules = rec {
        muster-agent = withPackage ./packaging/systemd/agent.nix "muster-agent" "muster-agent";
        muster-controller = withPackage ./packaging/systemd/controller.nix "muster-controller" "muster";
        default = muster-agent;
      };

      darwinModules = rec {
        muster-agent = withPackage ./packaging/launchd/agent.nix "muster-agent" "muster-agent";
        default = muster-agent;
      };

      devShells = forAllSystems (
        system:
        let
          pkgs = pkgsOf system;
        in
        {
          default = pkgs.mkShell {
            packages = [
              pkgs.cargo
              pkgs.cargo-deny
              pkgs.clippy
              pkgs.libplist
              pkgs.nixfmt-rfc-style
              pkgs.rust-analyzer
              pkgs.rustc
              pkgs.rustfmt
              pkgs.shellcheck
            ];
          };
        }
      );

      checks = forAllSystems (system: {
        inherit (self.packages.${system}) muster muster-agent;
      });

      formatter = forAllSystems (system: (pkgsOf system).nixfmt-rfc-style);
    };
}
