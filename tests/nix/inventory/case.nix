# Right and wrong inventories, with the services evaluated; ./run covers those that need no nixpkgs.
t:
let
  wrong = import ./wrong.nix { inherit (t) lib; };
  right = import ./right.nix { inherit (t) lib; };
in
{
  holds = builtins.listToAttrs (
    map (name: {
      inherit name;
      value = wrong.cases.${name};
    }) (builtins.attrNames wrong.cases)
    ++ map (name: {
      inherit name;
      value = right.cases.${name};
    }) (builtins.attrNames right.cases)
  );
  # Messages of nixpkgs's module system, or printed by mkFleet itself.
  refuses = import ./refusals.nix { inherit (t) lib; };
}
