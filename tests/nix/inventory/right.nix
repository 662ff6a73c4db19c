# What right inventories result in; without nixpkgs's lib, only those that do not need it.
{
  lib ? null,
}:
let
  inherit (builtins)
    attrNames
    concatMap
    length
    toJSON
    tryEval
    ;
  fleet = import ./fleet.nix;
  services = import ./services.nix;
  muster = import ../../../nix { };
  # A system is what its modules put under `told`, besides what mkFleet itself sets.
  system =
    class:
    { modules, specialArgs }:
    lib.evalModules {
      inherit class specialArgs;
      modules = modules ++ [
        {
          options = {
            told = lib.mkOption {
              type = lib.types.attrsOf lib.types.raw;
              default = { };
            };
            networking.hostName = lib.mkOption { type = lib.types.str; };
            nixpkgs.hostPlatform = lib.mkOption { type = lib.types.str; };
            muster.vars.machine = lib.mkOption { type = lib.types.str; };
            muster.vars.directory = lib.mkOption { type = lib.types.path; };
          };
        }
      ];
    };
  make =
    arguments:
    muster.mkFleet (
      {
        self = {
          outPath = ./.;
          inputs = { };
        };
        nixpkgs.lib = lib // { nixosSystem = system "nixos"; };
        nix-darwin.lib.darwinSystem = system "darwin";
        modules = services;
      }
      // arguments
    );
  of = inventory: make { inherit inventory; };

  says = text: words: builtins.replaceStrings [ words ] [ "" ] text != text;

  computed = of (
    fleet.good
    // {
      tags =
        { config, machines }:
        {
          lab = [ "iron" ];
          quiet = builtins.filter (name: !(builtins.elem name config.lab)) config.all;
          described = builtins.filter (name: machines.${name} ? description) config.darwin;
        };
    }
  );
  joined = of [
    { inherit (fleet) machines; tags.lab = [ "tin" ]; }
    (
      { self, ... }:
      {
        tags.lab = [ "iron" ];
        instances = fleet.web { server.tags = [ "lab" ]; };
        meta.name = baseNameOf (toString self.outPath);
      }
    )
  ];
  facts = of (
    fleet.machine "tin" {
      deploy.buildHost = "lead";
      description = "Under the stairs";
      muster = {
        deadlineSeconds = 60;
        action = "boot";
        checks.ssh.tcp = "127.0.0.1:22";
      };
    }
  );

  # docs/flakes.md shows the messages for this one.
  shown =
    let
      minerals = import ../../../examples/minerals/inventory.nix;
      machines = minerals.machines // {
        stibnite = minerals.machines.stibnite // {
          deploy.buildHost = "cinnabar";
        };
      };
    in
    (import ../../../nix/lib/inspect.nix {
      inherit (muster) services;
      self.outPath = ./.;
      inputs = { };
      lib = throw "nobody asks";
      nix-darwin = { };
      modules = services;
      machines = builtins.mapAttrs (_: _: { }) machines;
      machinesDir = ./.;
      exportInterfaces = { };
      inventory = {
        inherit machines;
        instances.sshd = {
          module = {
            input = "self";
            name = "web";
          };
          roles.server.tags.laptop = { };
        };
      };
    }).problems;

  pure = {
    "docs/flakes.md says of a wrong inventory what is said" = {
      found = builtins.filter (
        problem: !(says (builtins.readFile ../../../docs/flakes.md) "\n- ${problem}\n")
      ) shown;
      wanted = [ ];
    };
    "there are two mistakes in it" = {
      found = length shown;
      wanted = 2;
    };
    "a machine has its own tags, those of the inventory, its class and all" = {
      found = builtins.mapAttrs (_: machine: machine.tags) computed.muster.inventory.machines;
      wanted = {
        iron = [ "all" "darwin" "lab" ];
        lead = [ "all" "nixos" "quiet" ];
        tin = [ "all" "nixos" "quiet" "servers" ];
        zinc = [ "all" "darwin" "quiet" ];
      };
    };
    "a tag's machines are told as well" = {
      found = computed.muster.inventory.tags;
      wanted = {
        all = [ "iron" "lead" "tin" "zinc" ];
        darwin = [ "iron" "zinc" ];
        described = [ ];
        lab = [ "iron" ];
        nixos = [ "lead" "tin" ];
        quiet = [ "lead" "tin" "zinc" ];
        servers = [ "tin" ];
      };
    };
    "rollouts arrive as they are written, and only where there are any" = {
      found = (of (
        fleet.good
        // {
          rollouts.weekly = {
            waves = [
              {
                name = "canaries";
                machines = [ "tin" ];
                tags = [ "darwin" ];
                soak = "1h30m";
                atLeast = "90%";
                windows = [ { from = "22:00"; to = "04:00"; } ];
              }
            ];
            budget = 0;
            after.lead = [ "tin" ];
          };
        }
      )).muster.rollouts.weekly.after.lead ++ attrNames computed.muster;
      wanted = [ "tin" "inventory" "machines" "settings" ];
    };
    "a class follows from the system where it is not said" = {
      found = builtins.mapAttrs (_: machine: machine.class) (of {
        machines = {
          iron.system = "x86_64-darwin";
          lead.system = "x86_64-linux";
          tin = { };
          zinc.machineClass = "darwin";
        };
      }).muster.inventory.machines;
      wanted = {
        iron = "darwin";
        lead = "nixos";
        tin = "nixos";
        zinc = "darwin";
      };
    };
    "an inventory may be in parts" = {
      found = {
        inherit (joined.muster.inventory) instances meta;
        inherit (joined.muster.inventory.tags) lab;
      };
      wanted = {
        meta.name = "inventory";
        lab = [ "iron" "tin" ];
        instances.web = {
          module = {
            input = "self";
            name = "web";
          };
          roles.server = {
            machines = [ "iron" "tin" ];
            tags = [ "lab" ];
          };
        };
      };
    };
    "a machine without any role is fine" = {
      found = computed.muster.inventory.machines.zinc;
      wanted = {
        class = "darwin";
        system = "aarch64-darwin";
        tags = [ "all" "darwin" "quiet" ];
        description = null;
        buildHost = null;
        roles = { };
      };
    };
    "facts and tags go where the command line reads them" = {
      found = { inherit (facts.muster.machines) tin zinc; };
      wanted = {
        tin = {
          tags = [ "all" "nixos" "servers" ];
          deadlineSeconds = 60;
          action = "boot";
          checks.ssh.tcp = "127.0.0.1:22";
        };
        zinc.tags = [ "all" "darwin" ];
      };
    };
    "a build host of the same class is told" = {
      found = { inherit (facts.muster.inventory.machines.tin) buildHost description; };
      wanted = {
        buildHost = "lead";
        description = "Under the stairs";
      };
    };
    "each class has its output" = {
      found = {
        nixos = attrNames facts.nixosConfigurations;
        darwin = attrNames facts.darwinConfigurations;
      };
      wanted = {
        nixos = [ "lead" "tin" ];
        darwin = [ "iron" "zinc" ];
      };
    };
    "a wrong inventory stops every output" = {
      found = map (output: (tryEval (builtins.deepSeq output true)).success) (
        let
          wrong = of (fleet.machine "tin" { tag = [ ]; });
        in
        [
          (attrNames wrong.nixosConfigurations)
          (attrNames wrong.darwinConfigurations)
          wrong.muster.machines
          wrong.muster.inventory
        ]
      );
      wanted = [ false false false false ];
    };
    "the flake's own services are there for other flakes" = {
      found = attrNames (of fleet.good).clan.modules;
      wanted = attrNames services;
    };
    "the template is a fleet of both classes" =
      let
        template = ../../../nix/templates/fleet;
        it = make {
          inventory = template + "/inventory.nix";
          machinesDir = template + "/machines";
        };
      in
      {
        found = builtins.mapAttrs (_: machine: machine.class) it.muster.inventory.machines;
        wanted = {
          laptop = "darwin";
          server = "nixos";
        };
      };
    "an empty inventory is a fleet without machines" = {
      found = (of { }).muster.machines;
      wanted = { };
    };
  };

  settings = of (
    fleet.good
    // {
      meta.name = "ores";
      tags.lab = [ "tin" "iron" ];
      instances = fleet.web {
        server = {
          settings.sites = [ "role" ];
          tags.lab.settings = {
            sites = [ "lab" ];
            port = 80;
          };
          tags.darwin.settings.sites = [ "macs" ];
          machines.iron.settings = {
            port = lib.mkForce 8080;
            sites = [ "iron" ];
          };
          machines.zinc.settings.port = 81;
          extraModules = [ ./extra.nix ];
        };
      };
    }
  );
  macsOutside = of (
    fleet.good
    // {
      instances = {
        speed = {
          module = {
            input = "self";
            name = "tuner";
          };
          roles.default.tags = [ "nixos" ];
        };
        mark = {
          module = {
            input = "self";
            name = "marker";
          };
          roles.default = {
            tags = [ "all" ];
            extraModules = [ { told.marked = true; } ];
          };
        };
      };
    }
  );

  withLib = {
    "settings of role, machine and every matching tag have equal weight" = {
      found = settings.muster.settings.web.server;
      wanted = {
        iron = {
          port = 8080;
          sites = [ "lab" "macs" "iron" "role" ];
        };
        tin = {
          port = 80;
          sites = [ "lab" "role" ];
        };
        zinc = {
          port = 81;
          sites = [ "macs" "role" ];
        };
      };
    };
    "a service is told all that Clan tells it" = {
      found = settings.darwinConfigurations.iron.config.told.darwin.web;
      wanted = {
        instanceName = "web";
        machine = {
          name = "iron";
          roles = [ "server" ];
        };
        port = 8080;
        sites = [ "lab" "macs" "iron" "role" ];
        others = {
          iron = 8080;
          tin = 80;
          zinc = 81;
        };
        forced = 1;
        exported = {
          "web:web:server:iron" = 8080;
          "web:web:server:tin" = 80;
          "web:web:server:zinc" = 81;
        };
        fleet = "ores";
      };
    };
    "perMachine comes once, and tells of the machine's part" = {
      found = settings.nixosConfigurations.tin.config.told.machine;
      wanted = {
        roles = [ "server" ];
        instances = [ "web" ];
      };
    };
    "what is exported gets what its interface adds" = {
      found =
        (make {
          inventory = fleet.good // {
            instances = fleet.web { server.machines.tin.settings.port = 80; } // {
              reader = {
                module.input = "self";
                roles.default.machines.tin = { };
              };
            };
          };
          exportInterfaces.peer.options.peer = {
            port = lib.mkOption { type = lib.types.port; };
            weight = lib.mkOption { default = 5; };
          };
        }).nixosConfigurations.tin.config.told.exports;
      wanted."web:web:server:tin".peer = {
        port = 80;
        weight = 5;
      };
    };
    "extra modules come with the role alone" = {
      found = {
        tin = settings.nixosConfigurations.tin.config.told.extra;
        lead = settings.nixosConfigurations.lead.config.told ? extra;
      };
      wanted = {
        tin = "nixos";
        lead = false;
      };
    };
    "a machine's own module and name are in its system" = {
      found = {
        inherit (settings.darwinConfigurations.zinc.config) networking nixpkgs;
        inherit (settings.darwinConfigurations.zinc.config.muster.vars) machine;
      };
      wanted = {
        networking.hostName = "zinc";
        nixpkgs.hostPlatform = "aarch64-darwin";
        machine = "zinc";
      };
    };
    "Macs outside every role are as they are" = {
      found = {
        tin = macsOutside.nixosConfigurations.tin.config.told;
        iron = macsOutside.darwinConfigurations.iron.config.told;
      };
      wanted = {
        tin = {
          tuned = true;
          marked = true;
        };
        iron.marked = true;
      };
    };
    "a role that a machine cannot fill stops every system and not the list of them" =
      let
        wrong = of (
          fleet.good
          // {
            instances.tuner = {
              module.input = "self";
              roles.default.tags.all = { };
            };
          }
        );
        works = value: (tryEval (builtins.seq value true)).success;
      in
      {
        found = {
          lead = works wrong.nixosConfigurations.lead;
          names = attrNames wrong.nixosConfigurations;
          inventory = works wrong.muster.inventory;
          settings = works wrong.muster.settings;
        };
        wanted = {
          lead = false;
          names = [ "lead" "tin" ];
          inventory = true;
          settings = false;
        };
      };
  };

  cases = pure // (if lib == null then { } else withLib);
in
{
  # Whether each holds.
  cases = builtins.mapAttrs (_: case: case.found == case.wanted) cases;
  checked = length (attrNames cases);
  failures = concatMap (
    name:
    let
      inherit (cases.${name}) found wanted;
    in
    if found == wanted then
      [ ]
    else
      [ "${name}\n    wanted ${toJSON wanted}\n    found  ${toJSON found}" ]
  ) (attrNames cases);
}
