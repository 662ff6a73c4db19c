# The fleets in examples/: roles, settings and daemons of every machine, as examples/README.md documents them.
t:
let
  inherit (t) lib;
  inherit (builtins) attrNames mapAttrs readFile;

  # What the examples' machines set for their hardware and upkeep, beyond the options that Muster's modules
  # set.
  hardware.options = lib.genAttrs [ "boot" "fileSystems" "nix" "system" ] (
    name:
    {
      boot.loader = lib.mkOption { type = lib.types.raw; };
      fileSystems = lib.mkOption { type = lib.types.raw; };
      nix.gc = lib.mkOption {
        type = lib.types.raw;
        default = null;
      };
      system.stateVersion = lib.mkOption { type = lib.types.str; };
    }
    .${name}
  );
  # Muster's flake, with packages that are names.
  nixpkgs = {
    inherit lib;
    legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" ] (
      system: t.pkgs system // { rustPlatform.buildRustPackage = { pname, ... }: (t.pkgs system).${pname}; }
    );
  };
  flake = (import (t.repository + "/flake.nix")).outputs {
    inherit nixpkgs;
    # What sops-nix itself brings is not part of the examples.
    sops-nix = t.sops-nix-stub;
    self = flake // {
      outPath = t.repository;
    };
  };
  muster = flake.lib;
  fleet =
    name: more:
    let
      folder = t.repository + "/examples/${name}";
    in
    muster.mkFleet (
      {
        # The tests' variables: an example has none, since everyone who copies it generates their own.
        self = {
          outPath = t.repository + "/tests/nix/lib/source";
          inputs = { };
        };
        inventory = folder + "/inventory.nix";
        machinesDir = folder + "/machines";
        nixpkgs.lib = lib // {
          nixosSystem = { modules, specialArgs }: t.nixos { modules = modules ++ [ hardware ]; inherit specialArgs; };
        };
        nix-darwin.lib.darwinSystem =
          { modules, specialArgs }:
          t.darwin {
            # The shell's own packages are not in the stand-in package set.
            modules = modules ++ [ { programs.zsh.enable = false; } ];
            inherit specialArgs;
          };
      }
      // more
    );
  minerals = fleet "minerals" { };
  mixed = fleet "mixed" { modules.quiet-hours = t.repository + "/examples/mixed/quiet-hours.nix"; };
  inherit (minerals.darwinConfigurations) stibnite blackphos;
  inherit (minerals.nixosConfigurations) cinnabar;

  # `| MACHINE | CLASS | INSTANCE: ROLE, ROLE; … |`, as the README's table has it.
  rows =
    it:
    lib.mapAttrsToList (
      name: machine:
      let
        roles = lib.concatStringsSep "; " (
          lib.mapAttrsToList (instance: roles: "${instance}: ${lib.concatStringsSep ", " roles}") machine.roles
        );
      in
      "| ${name} | ${machine.class} | ${if roles == "" then "none" else roles} |"
    ) it.muster.inventory.machines;
  packageRows = lib.mapAttrsToList (
    name: one: "| ${name} | ${lib.concatStringsSep ", " (packagesOf one)} |"
  ) everyone;
  readme = lib.splitString "\n" (readFile (t.repository + "/examples/README.md"));
  documented = it: lib.all (row: lib.elem row readme) (rows it);

  everyone = {
    inherit cinnabar stibnite blackphos;
  };
  packagesOf =
    one:
    lib.filter (
      name:
      lib.elem name [
        "git"
        "htop"
        "jq"
        "ripgrep"
      ]
    ) (map (package: package.name or "?") one.config.environment.systemPackages);
  daemons = one: attrNames one.config.launchd.daemons;
  # A Mac outside any fleet, with only the agent.
  plain = t.darwin {
    modules = [
      flake.darwinModules.muster-agent
      { services.muster-agent.enable = true; }
    ];
  };
  newDaemons = one: lib.subtractLists (daemons plain) (daemons one);
  service = one: name: one.config.launchd.daemons.${name}.serviceConfig;
in
{
  expect = {
    "minerals-inventory.json" = minerals.muster.inventory;
    "minerals-settings.json" = minerals.muster.settings;
    "minerals-facts.json" = minerals.muster.machines;
    "minerals-known-hosts.json" = mapAttrs (_: one: mapAttrs (_: known: known.hostNames) one.config.programs.ssh.knownHosts) everyone;
    "minerals-daemons.json" = {
      cinnabar = attrNames cinnabar.config.systemd.services;
      stibnite = newDaemons stibnite;
      blackphos = newDaemons blackphos;
    };
    "mixed-inventory.json" = mixed.muster.inventory;
    "mixed-settings.json" = mixed.muster.settings;
    "mixed-gc.json" = mapAttrs (_: one: one.config.nix.gc) mixed.nixosConfigurations;
  };

  holds = {
    "examples/README.md has each machine of minerals with its roles" = documented minerals;
    "examples/README.md has each machine of mixed with its roles" = documented mixed;
    "examples/README.md has each machine of minerals with its packages" = lib.all (row: lib.elem row readme) packageRows;
    "the example flakes call mkFleet as it is called here" = lib.all (
      name: lib.hasInfix "muster.lib.mkFleet {\n      inherit self;\n      inventory = ./inventory.nix;" (readFile (t.repository + "/examples/${name}/flake.nix"))
    ) [ "minerals" "mixed" ];
    "every machine has the agent, also Macs outside every role" = lib.all (one: one.config.services.muster-agent.enable) (
      lib.attrValues everyone
      ++ lib.attrValues mixed.darwinConfigurations
      ++ lib.attrValues mixed.nixosConfigurations
    );
    "templates are there for nix flake init" = builtins.pathExists (flake.templates.default.path + "/flake.nix");
    "every machine of minerals is what it says" =
      mapAttrs (_: one: one.config.networking.hostName) everyone == {
        cinnabar = "cinnabar";
        stibnite = "stibnite";
        blackphos = "blackphos";
      };
    "no warning is left in minerals" = lib.all (one: (t.checked one.config).warnings == [ ]) (lib.attrValues everyone);
    "every new daemon of a Mac waits for /nix and changes with its configuration" = lib.all (
      name:
      lib.hasInfix "/bin/wait4path /nix/store" (t.plist stibnite "org.nixos.${name}")
      && (service stibnite name).EnvironmentVariables ? MUSTER_CONFIGURATION
    ) (newDaemons stibnite);
    "README.md tells each new daemon of a Mac" = lib.all (
      name: lib.any (lib.hasInfix "`org.nixos.${name}`") readme
    ) (newDaemons stibnite);
    "Macs outside every role have the daemons of nix-darwin, the agent, and no others" = lib.all (
      one: daemons one == daemons plain
    ) (lib.attrValues mixed.darwinConfigurations);
    "their own configuration is in them" = mixed.darwinConfigurations.rosegold.config.system.primaryUser == "janet";
  };
}
