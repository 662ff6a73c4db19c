# flake.nix, with the parts of nixpkgs that tests have: what it exports, and that its modules bring its own
# packages.
t:
let
  inherit (t) lib;
  nixpkgs = {
    lib = lib // {
      nixosSystem = t.nixos;
    };
    outPath = "/nixpkgs";
    legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" ] t.pkgs;
  };
  self = (import (t.repository + "/flake.nix")).outputs {
    inherit self nixpkgs;
    sops-nix = t.sops-nix-flake;
  };
  # The check that evaluates with NixOS itself, as far as it gets without it.
  raw = lib.mkOption { type = lib.types.raw; };
  onNixos = import (t.repository + "/tests/nix/lib/real-nixos.nix") {
    pkgs = t.pkgs "x86_64-linux";
    muster = self;
    nixpkgs.lib = lib // {
      nixosSystem =
        { modules, specialArgs }:
        t.nixos {
          inherit specialArgs;
          modules = modules ++ [
            (
              { config, ... }:
              {
                options = {
                  boot.loader.grub.enable = raw;
                  fileSystems = raw;
                  nixpkgs.config = raw;
                  system.stateVersion = raw;
                };
                config.system.build.toplevel.drvPath = builtins.deepSeq config.systemd.services "/nix/store/${config.networking.hostName}.drv";
              }
            )
          ];
        };
    };
  };
  names = lib.mapAttrs (_: lib.attrNames);
  host = t.nixos {
    modules = [
      self.nixosModules.muster-agent
      self.nixosModules.muster-controller
      {
        services.muster-agent.enable = true;
        services.muster-controller.enable = true;
      }
    ];
  };
  # Directly and through a module of theirs, like the one that mkFleet brings.
  twice = [
    self.darwinModules.muster-agent
    (t.repository + "/packaging/launchd/agent.nix")
    { imports = [ self.darwinModules.muster-agent ]; }
  ];
  mac = t.darwin {
    modules = twice ++ [
      { services.muster-agent.enable = true; }
    ];
  };
in
{
  expect = {
    "outputs.json" = {
      packages = names self.packages;
      apps = lib.mapAttrs (_: lib.mapAttrs (_: app: app.meta.description)) self.apps;
      checks = names self.checks;
      devShells = names self.devShells;
      nixosModules = lib.attrNames self.nixosModules;
      darwinModules = lib.attrNames self.darwinModules;
      services = lib.attrNames self.clan.modules;
    };
    "services.json" = lib.mapAttrs (
      _: file:
      let
        service = import file {
          inherit lib;
          directory = "/";
        };
      in
      {
        inherit (service.manifest) name description;
        roles = lib.mapAttrs (_: role: role.description) service.roles;
      }
    ) self.clan.modules;
  };
  holds = {
    "the modules bring the flake's own packages" =
      host.config.services.muster-agent.package == self.packages.x86_64-linux.muster-agent
      && host.config.services.muster-controller.package == self.packages.x86_64-linux.muster
      && mac.config.services.muster-agent.package == self.packages.aarch64-darwin.muster-agent;
    "every service has a readme that says more than its name" = lib.all (
      file: lib.stringLength (builtins.readFile (file + "/README.md")) > 500
    ) (lib.attrValues self.clan.modules);
    "the check on NixOS has both hosts with all services" =
      onNixos.text == "/nix/store/cinnabar.drv\n/nix/store/electrum.drv\n";
    "apps run what the packages have" =
      self.apps.x86_64-linux.default.program == lib.getExe self.packages.x86_64-linux.muster;
  };
}
