# lib.mkFleet: from one inventory to the systems of its machines, and to what Muster's programs read from it.
{
  # Muster's own services by name, and the modules that every machine of a class gets.
  services,
  baseModules,
  # From Muster's flake, for fleets without an input of that name.
  fallback,
}:
{
  # The flake itself.
  self,
  # An inventory, a file with one, a function of { lib, inputs, self } to one, or a list of these.
  inventory,
  inputs ? self.inputs or { },
  nixpkgs ? inputs.nixpkgs or fallback.nixpkgs,
  nix-darwin ? inputs.nix-darwin or inputs.darwin or null,
  # What decrypts the secrets of users and services on machines; needed where there are any.
  sops-nix ? inputs.sops-nix or fallback.sops-nix or null,
  # Services of this flake by name, for `module.input = "self"`.
  modules ? { },
  # Modules of machines by name, instead of machines/NAME/configuration.nix.
  machines ? { },
  # Where the machines' folders are.
  machinesDir ? (self.outPath or self) + "/machines",
  specialArgs ? { },
  # What services may export, by name, as Clan's `exportInterfaces`.
  exportInterfaces ? { },
}:
let
  inherit (builtins) listToAttrs mapAttrs;
  report = import ./report.nix;
  inspected = import ./inspect.nix {
    inherit
      services
      self
      inventory
      inputs
      nix-darwin
      modules
      machines
      machinesDir
      exportInterfaces
      ;
    inherit (nixpkgs) lib;
  };
  inherit (inspected) fleet names;
  right = report inspected.problems;
  # A machine's system is made only if the fleet's services are valid as well.
  sound = value: right (report inspected.serviceProblems value);

  base =
    machine:
    { lib, options, ... }:
    {
      _file = "Muster's mkFleet, for ${machine.name}";
      config = lib.mkMerge [
        # A machine's name may contain what a host name cannot.
        (lib.mkIf (builtins.match "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?" machine.name != null) {
          networking.hostName = lib.mkDefault machine.name;
        })
        (lib.mkIf (machine.system != null) { nixpkgs.hostPlatform = lib.mkDefault machine.system; })
        (lib.optionalAttrs (options ? muster.vars) {
          muster.vars = {
            machine = machine.name;
            directory = self.outPath or self;
          };
        })
      ];
    };
  sopsModules =
    let
      of = output: if sops-nix == null then [ ] else [ sops-nix.${output}.sops ];
    in
    {
      nixos = of "nixosModules";
      darwin = of "darwinModules";
    };
  systemOf =
    machine:
    let
      make =
        if machine.class == "darwin" then nix-darwin.lib.darwinSystem else nixpkgs.lib.nixosSystem;
    in
    make {
      specialArgs = {
        inherit self inputs;
      }
      // specialArgs;
      modules = [
        (base machine)
      ]
      ++ sopsModules.${machine.class}
      ++ baseModules.${machine.class}
      ++ inspected.evaluated.modulesFor names.classes.${machine.class}.module machine.name
      ++ [ (inspected.machineModule machine.name) ];
    };
  # The names are available at once, for callers that only list them.
  systems =
    class:
    right (
      listToAttrs (
        map (name: {
          inherit name;
          value = sound (systemOf fleet.${name});
        }) (inspected.namesOf class)
      )
    );
in
{
  nixosConfigurations = systems "nixos";
  darwinConfigurations = systems "darwin";

  muster = {
    machines = right (mapAttrs (_: machine: { inherit (machine) tags; } // machine.facts) fleet);
    inventory = right inspected.serialised;
    # settings.INSTANCE.ROLE.MACHINE, as the service gets them: shows people the result of a merge.
    settings = sound inspected.evaluated.settings;
  }
  # Programs of version 0.1 refuse outputs that they do not know.
  // right (if inspected.whole.rollouts == { } then { } else { inherit (inspected.whole) rollouts; });
}
// (if modules == { } then { } else { clan.modules = modules; })
