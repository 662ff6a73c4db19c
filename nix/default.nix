# Muster's library for flakes. `lib` of the flake; nothing in it needs nixpkgs until a machine's system is
# evaluated.
{
  # Modules that every machine of a class gets: { nixos = [ … ]; darwin = [ … ]; }.
  baseModules ? {
    nixos = [ ];
    darwin = [ ];
  },
  # Used by fleets that have no input of that name: { nixpkgs, sops-nix }.
  fallback ? { },
}:
let
  folder = ./services;
  entries = if builtins.pathExists folder then builtins.readDir folder else { };
  isService = name: entries.${name} == "directory" && builtins.pathExists (folder + "/${name}/default.nix");
in
rec {
  # Each service by name, as `clan.modules` of the flake.
  services = builtins.listToAttrs (
    map (name: {
      inherit name;
      value = folder + "/${name}";
    }) (builtins.filter isService (builtins.attrNames entries))
  );

  mkFleet = import ./lib/fleet.nix { inherit services baseModules fallback; };
}
