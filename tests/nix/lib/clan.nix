# The same inventory in a real Clan, where Muster is an input of the flake: Clan's own modules evaluate
# services, settings and, on Macs, the whole of its core; on NixOS its vars, secrets and settings.
t:
{
  inventory,
  directory,
  machines ? { },
  # Clan's own services, for instances with `module.input = null`.
  clanServices ? { },
}:
let
  inherit (t) lib;
  root = t.clan-core;
  clanLib = import (root + "/lib") { inherit lib; };
  sops = module: if t.sops-nix == null then ./sops.nix else t.sops-nix + module;
  core =
    {
      _class,
      lib,
      pkgs,
      ...
    }:
    {
      # The key that the machine made itself, unless another is given.
      sops.age.keyFile = lib.mkOverride 1400 "/var/lib/muster/age.txt";
      imports =
        if _class == "darwin" then
          [
            (root + "/nixosModules/clanCore")
            (root + "/darwinModules/hosts.nix")
            (sops "/modules/nix-darwin")
          ]
        else
          map (name: root + "/nixosModules/clanCore/${name}") [
            "dependencies.nix"
            "settings.nix"
            "sops.nix"
            "vars"
          ]
          ++ [
            ./nixos-in-clan.nix
            (sops "/modules/sops")
          ];
    };
  clan-core = {
    inherit clanLib;
    clan = {
      modules = clanServices;
      deprecatedModules = [ ];
      templates = { };
    };
    modules.clan.default = lib.modules.importApply (root + "/modules/clan/default.nix") {
      inherit clan-core;
    };
    nixosModules.clanCore = core;
    darwinModules.clanCore = core;
    inputs = { };
  };
  self = {
    outPath = toString directory;
    inputs = {
      nixpkgs.lib = lib // {
        nixosSystem = t.nixos;
      };
      nix-darwin.lib.darwinSystem = t.darwin;
      muster.clan.modules = (import (t.repository + "/nix") { }).services;
    };
  };
  evaluated = lib.evalModules {
    class = "clan";
    specialArgs = {
      inherit self;
      inherit (self.inputs) nixpkgs nix-darwin;
    };
    modules = [
      clan-core.modules.clan.default
      {
        inherit self machines;
        directory = toString directory;
        meta.name = "fleet";
        inventory = inventory // {
          instances = lib.mapAttrs (
            _: instance:
            instance
            // {
              module = {
                input = "muster";
              }
              // instance.module;
            }
          ) inventory.instances;
        };
      }
    ];
  };
in
{
  inherit (evaluated.config) nixosConfigurations darwinConfigurations exports;
}
