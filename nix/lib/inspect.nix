# What an inventory results in, and everything that is wrong with it. fleet.nix makes the systems from it.
{
  # Muster's own services by name.
  services,
  self,
  inventory,
  inputs,
  lib,
  nix-darwin,
  modules,
  machines,
  machinesDir,
  exportInterfaces,
}:
let
  inherit (builtins)
    attrNames
    concatMap
    filter
    head
    pathExists
    ;
  own = machines;

  text = import ./text.nix;
  names = import ./names.nix;
  shape = import ./shape.nix { inherit text names; };
  combine = import ./combine.nix { inherit text names; };
  relations = import ./relations.nix { inherit text names; };
  parts = import ./parts.nix { inherit text names; };
  sources = import ./sources.nix { inherit text; } {
    muster = services;
    own = modules;
    inherit inputs;
  };
  written = import ./read.nix { inherit lib inputs self; } inventory;
  whole = combine.combined written;
  namesOf = class: filter (name: names.classOf whole.machines.${name} == class) (attrNames whole.machines);

  folder = name: machinesDir + "/${name}/configuration.nix";
  moduleProblems =
    map (
      name:
      "machines.${name}: there is no ${toString (folder name)}; write it (git must know of a new file), or give its module in mkFleet's argument `machines.${name}`."
    ) (filter (name: !(own ? ${name}) && !(pathExists (folder name))) (attrNames whole.machines))
    ++ map (
      name:
      "mkFleet's argument `machines.${name}`: the inventory has no machine `${name}`.${
        text.didYouMean name (attrNames whole.machines)
      } It has ${text.listed (attrNames whole.machines)}."
    ) (filter (name: !(whole.machines ? ${name})) (attrNames own));
  darwinProblems =
    if nix-darwin != null || namesOf "darwin" == [ ] then
      [ ]
    else
      [
        "machines.${head (namesOf "darwin")}: the flake has no input `nix-darwin`, which makes the systems of Macs; add one, or give it in mkFleet's argument `nix-darwin`."
      ];

  # Each step looks only at what the previous one accepted.
  steps = [
    (concatMap (part: shape.problems part.value) written)
    (combine.problems written)
    (relations.problems whole ++ sources.problems whole ++ moduleProblems ++ darwinProblems)
  ];
  first = steps: if steps == [ ] then [ ] else if head steps != [ ] then head steps else first (builtins.tail steps);
in
rec {
  inherit names namesOf;
  # Of the inventory without its services: needs no nixpkgs.
  problems = first steps;
  # Of its services; evaluated only if there are no others.
  serviceProblems = parts.problems {
    inherit (evaluated) services;
    machines = fleet;
    inherit roles;
  };

  inherit whole;
  fleet = relations.machinesOf whole;
  roles = relations.rolesOf whole fleet;
  serialised = import ./serialise.nix { inherit relations; } {
    inventory = whole;
    machines = fleet;
    inherit roles;
  };
  evaluated = import ./services.nix {
    inherit lib exportInterfaces;
    directory = self.outPath or self;
    inherit (whole) meta;
    inventory = whole;
    machines = fleet;
    inherit roles;
    modules = sources.modules whole;
  };
  machineModule = name: own.${name} or (folder name);
}
