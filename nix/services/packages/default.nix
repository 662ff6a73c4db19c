# Packages from nixpkgs on machines of both classes.
{ lib, ... }:
let
  names =
    description:
    lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "ripgrep" ];
      inherit description;
    };
  find =
    { instanceName, machine, ... }:
    pkgs: name:
    let
      path = lib.splitString "." name;
    in
    if lib.hasAttrByPath path pkgs then
      lib.getAttrFromPath path pkgs
    else
      throw "instances.${instanceName}: nixpkgs has no ${name} for ${machine.name} (${pkgs.stdenv.hostPlatform.system}).";
  install =
    own: instance@{ settings, ... }:
    { pkgs, ... }:
    {
      environment.systemPackages = map (find instance pkgs) (settings.packages ++ settings.${own});
    };
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/packages";
    description = "Packages on machines of both classes";
    categories = [ "System" ];
    readme = builtins.readFile ./README.md;
  };
  roles.default = {
    description = "Has the packages in everybody's PATH.";
    interface.options = {
      packages = names "Packages by their attribute in nixpkgs, on every machine.";
      nixosPackages = names "Further packages on NixOS hosts.";
      darwinPackages = names "Further packages on Macs.";
    };
    perInstance = instance@{ instanceName, machine, settings, ... }: {
      nixosModule = install "nixosPackages" instance;
      darwinModule = install "darwinPackages" instance;
    };
  };
}
