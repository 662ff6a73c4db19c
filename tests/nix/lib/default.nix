# What a case is given. See ../README.md.
{
  nixpkgs-lib,
  nix-darwin,
  clan-core ? "",
  sops-nix ? "",
}:
let
  lib = import (nixpkgs-lib + "/lib");
  repository = ../../..;
  folder = text: if text == "" then null else /. + text;
  t = {
    inherit lib repository;
    nix-darwin = folder nix-darwin;
    clan-core = folder clan-core;
    sops-nix = folder sops-nix;
    pkgs = system: import ./pkgs.nix { inherit lib system; };

    # A Mac's configuration, evaluated by the real nix-darwin.
    darwin =
      {
        modules,
        system ? "aarch64-darwin",
        specialArgs ? { },
      }:
      import (t.nix-darwin + "/eval-config.nix") {
        inherit lib specialArgs;
        enableNixpkgsReleaseCheck = false;
        modules = [
          {
            _module.args.pkgs = lib.mkForce (t.pkgs system);
            nixpkgs.hostPlatform = system;
            system.stateVersion = lib.mkDefault 6;
          }
        ]
        ++ modules;
      };

    # A NixOS host's configuration, evaluated by a stub of NixOS's options: see ./nixos.nix.
    nixos =
      {
        modules,
        system ? "x86_64-linux",
        specialArgs ? { },
      }:
      let
        evaluated = lib.evalModules {
          class = "nixos";
          inherit specialArgs;
          modules = [
            ./nixos.nix
            {
              _module.args.pkgs = lib.mkForce (t.pkgs system);
              nixpkgs.hostPlatform = system;
            }
          ]
          ++ modules;
        };
      in
      evaluated // { system = t.checked evaluated.config; };

    # A configuration whose assertions hold; as NixOS and nix-darwin do it when they build.
    checked =
      config:
      let
        failed = map (it: it.message) (lib.filter (it: !it.assertion) config.assertions);
      in
      if failed == [ ] then config else throw (lib.concatStringsSep "\n" failed);

    # One instance of one service, on the machines of ./machines.nix, in a fleet of ours and in a Clan. `more` has further
    # instances, `modules` further modules of machines.
    service =
      {
        name,
        instance ? name,
        roles,
        more ? { },
        modules ? { },
        directory ? ./source,
      }:
      let
        fleet = {
          inventory = {
            machines = import ./machines.nix;
            instances = {
              ${instance} = {
                module = { inherit name; };
                inherit roles;
              };
            }
            // more;
          };
          inherit directory;
          machines = lib.mapAttrs (
            name: _: { imports = [ (modules.${name} or { }) ]; }
          ) (import ./machines.nix);
        };
        configurations = it: it.nixosConfigurations // it.darwinConfigurations;
      in
      {
        ours = configurations (t.fleet fleet);
        clans = configurations (t.clan fleet);
      };

    # The parts of a configuration that goldens show.
    plist = configuration: name: t.checkedPlist configuration.config.environment.launchDaemons name;
    userPlist = configuration: name: t.checkedPlist configuration.config.environment.userLaunchAgents name;
    checkedPlist =
      files: name:
      files."${name}.plist".text or (throw "there is no ${name}.plist, but ${toString (lib.attrNames files)}");
    etc = configuration: name: configuration.config.environment.etc.${name}.text;

    # A fleet of Muster's own library, and the same inventory in a Clan: { nixosConfigurations, darwinConfigurations }.
    fleet = import ./fleet.nix t;
    clan = import ./clan.nix t;
  };
in
t
