# The arguments of a case. See ../README.md.
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
    # The flake of sops-nix, as far as mkFleet uses it.
    sops-nix-stub = {
      nixosModules.sops = ./sops-nix.nix;
      darwinModules.sops = ./sops-nix.nix;
    };
    sops-nix-flake =
      if t.sops-nix == null then
        t.sops-nix-stub
      else
        {
          nixosModules.sops = {
            imports = [
              (t.sops-nix + "/modules/sops")
              ./nixos-in-clan.nix
            ];
            # Nothing is copied into a store here, so nothing can be read there.
            sops.validateSopsFiles = false;
          };
          darwinModules.sops = {
            imports = [ (t.sops-nix + "/modules/nix-darwin") ];
            sops.validateSopsFiles = false;
          };
        };
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
      lib.evalModules {
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

    # A configuration whose assertions hold, as NixOS and nix-darwin check when they build.
    checked =
      config:
      let
        failed = map (it: it.message) (lib.filter (it: !it.assertion) config.assertions);
      in
      if failed == [ ] then config else throw (lib.concatStringsSep "\n" failed);

    # One instance of one service, on the machines of ./machines.nix, in our fleet and in a Clan. `more` has
    # additional instances, `modules` additional machine modules.
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
        # As it is built: with assertions that hold.
        configurations =
          it:
          lib.mapAttrs (_: one: one // { config = t.checked one.config; }) (
            it.nixosConfigurations // it.darwinConfigurations
          );
      in
      {
        ours = configurations (t.fleet fleet);
        clans = configurations (t.clan fleet);
        clanExports = (t.clan fleet).exports;
      };

    # The parts of a configuration that goldens show.
    plist = configuration: name: t.checkedPlist configuration.config.environment.launchDaemons name;
    userPlist = configuration: name: t.checkedPlist configuration.config.environment.userLaunchAgents name;
    # A Clan on a Mac has no restartUnits, so its daemons lack what these add; our services have hashes of
    # their own.
    withoutSecrets =
      text:
      lib.concatStrings (
        lib.filter lib.isString (
          builtins.split "[[:space:]]*<key>MUSTER_SECRETS</key>[[:space:]]*<string>[0-9a-f]*</string>" text
        )
      );
    checkedPlist =
      files: name:
      files."${name}.plist".text or (throw "there is no ${name}.plist, but ${toString (lib.attrNames files)}");
    # Units without unset fields.
    unit =
      configuration: name:
      lib.filterAttrs (
        _: value:
        !(lib.elem value [
          null
          [ ]
          { }
          ""
        ])
      ) (removeAttrs configuration.config.systemd.services.${name} [ "enable" "restartIfChanged" "stopIfChanged" ]);
    # A generator, without what all of them share. Clan's and ours have the same names.
    generators =
      tree:
      lib.mapAttrs (_: generator: {
        inherit (generator)
          share
          dependencies
          script
          ;
        runtimeInputs = map (package: package.name) generator.runtimeInputs;
        prompts = lib.mapAttrs (_: prompt: {
          inherit (prompt)
            type
            persist
            description
            ;
        }) generator.prompts;
        files = lib.mapAttrs (
          _: file:
          {
            inherit (file)
              secret
              deploy
              owner
              group
              mode
              neededFor
              restartUnits
              ;
          }
          // lib.optionalAttrs file.secret { inherit (file) path; }
        ) generator.files;
      }) tree;
    etc = configuration: name: configuration.config.environment.etc.${name}.text;

    # What holds, or is expected (below `clan/`), only in a Clan.
    inClan = lib.optionalAttrs (t.clan-core != null);

    # A fleet from Muster's own library, and the same inventory in a Clan: { nixosConfigurations,
    # darwinConfigurations }.
    fleet = import ./fleet.nix t;
    clan = import ./clan.nix t;
  };
in
t
