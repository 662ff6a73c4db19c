{
  description = "Muster: signed updates for fleets of Macs and NixOS hosts, pulled by the machines";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";
    # Decrypts secrets on machines.
    sops-nix.url = "github:Mic92/sops-nix";
    sops-nix.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    {
      self,
      nixpkgs,
      sops-nix,
    }:
    let
      inherit (nixpkgs) lib;
      supported = [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
        "x86_64-darwin"
      ];
      # Newer nixpkgs no longer have packages for Intel Macs; older ones do.
      systems = builtins.filter (system: nixpkgs.legacyPackages ? ${system}) supported;
      each = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});

      # The program of one crate. Its tests need Nix itself and run in tests/run, not in the sandbox.
      program =
        pkgs: name: crate: description:
        pkgs.rustPlatform.buildRustPackage {
          pname = name;
          version = (lib.importTOML ./Cargo.toml).workspace.package.version;
          src = import ./nix/source.nix ./.;
          cargoLock.lockFile = ./Cargo.lock;
          buildType = "dist";
          cargoBuildFlags = [
            "--package"
            crate
          ];
          doCheck = false;
          meta = {
            inherit description;
            mainProgram = name;
            license = [
              lib.licenses.mit
              lib.licenses.asl20
            ];
          };
        };
      packagesOf = pkgs: rec {
        muster = program pkgs "muster" "muster" "Muster's server and the operators' command line";
        muster-agent = program pkgs "muster-agent" "muster-agent" "The agent on each machine of a Muster fleet";
        default = muster;
      };

      packageFor =
        system: name:
        self.packages.${system}.${name} or (throw (
          if builtins.elem system supported then
            "the nixpkgs that Muster is built from has no packages for ${system}: let muster.inputs.nixpkgs follow one that has"
            + " (for Intel Macs 26.05 is the last), or set services.muster-agent.package"
          else
            "Muster is built for ${builtins.concatStringsSep ", " supported}, and not for ${system}: set"
            + " services.muster-agent.package to a package of your own"
        ));

      # A module, with this flake's package as its default.
      withPackage =
        module: service: name:
        { pkgs, ... }:
        {
          # Imported both directly and through mkFleet, it counts once.
          key = "muster's ${service}";
          imports = [ module ];
          services.${service}.package = lib.mkDefault (packageFor pkgs.stdenv.hostPlatform.system name);
        };

      # A fleet's machine without the agent would take one update, its last.
      agentIn = module: [
        module
        { services.muster-agent.enable = lib.mkDefault true; }
      ];
      library = import ./nix {
        baseModules = {
          nixos = agentIn self.nixosModules.muster-agent ++ [ self.nixosModules.muster-secrets ];
          darwin = agentIn self.darwinModules.muster-agent ++ [ self.darwinModules.muster-secrets ];
        };
        fallback = { inherit nixpkgs sops-nix; };
      };
    in
    {
      lib = { inherit (library) mkFleet; };
      templates = import ./nix/templates;

      packages = each packagesOf;
      overlays.default = final: _: removeAttrs (packagesOf final) [ "default" ];

      # For flake-parts: imports = [ inputs.muster.flakeModules.default ];
      flakeModules.default = import ./nix/flake-module.nix { inherit (library) mkFleet; };
      flakeModule = self.flakeModules.default;

      nixosModules = {
        # What a fleet's machine needs.
        default.imports = [
          self.nixosModules.muster-agent
          self.nixosModules.muster-secrets
        ];
        muster-agent = withPackage ./packaging/systemd/agent.nix "muster-agent" "muster-agent";
        muster-controller = withPackage ./packaging/systemd/controller.nix "muster-controller" "muster";
        muster-secrets = ./nix/modules/secrets-nixos.nix;
      };
      darwinModules = {
        default.imports = [
          self.darwinModules.muster-agent
          self.darwinModules.muster-secrets
        ];
        muster-agent = withPackage ./packaging/launchd/agent.nix "muster-agent" "muster-agent";
        muster-secrets = ./nix/modules/secrets-darwin.nix;
      };

      # Services for both classes; in a Clan flake: instances.I.module = { input = "muster"; name = "zerotier"; }.
      clan.modules = library.services;

      apps = each (
        pkgs:
        let
          packages = packagesOf pkgs;
          app = program: description: {
            type = "app";
            inherit program;
            meta = { inherit description; };
          };
        in
        rec {
          default = muster;
          muster = app (lib.getExe packages.muster) "The server and the operators' command line";
          muster-agent = app (lib.getExe packages.muster-agent) "The agent on each machine";
        }
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isDarwin {
          # sudo nix run .#install -- --token FILE
          install = app (toString (
            pkgs.writeShellScript "muster-install" ''
              exec /bin/sh ${./packaging/launchd}/install --binary ${lib.getExe packages.muster-agent} "$@"
            ''
          )) "A Mac's first installation";
        }
      );

      devShells = each (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.cargo
            pkgs.clippy
            pkgs.rustfmt
            pkgs.cargo-deny
            pkgs.jq
            pkgs.libplist
            pkgs.python3
            pkgs.shellcheck
          ];
        };
      });

      checks = each (
        pkgs:
        removeAttrs (packagesOf pkgs) [ "default" ]
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
          # Unlike tests/nix-modules, this uses NixOS's own modules.
          services-on-nixos = import ./tests/nix/lib/real-nixos.nix {
            inherit pkgs nixpkgs;
            muster = self;
          };
        }
      );
    };
}
