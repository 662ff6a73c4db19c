# packages: the same names on both classes, and some of their own.
t:
let
  fleetWith =
    settings:
    t.service {
      name = "packages";
      roles.default.tags.all.settings = settings;
    };
  fleet = fleetWith {
    packages = [
      "ripgrep"
      "nested.tool"
    ];
    nixosPackages = [ "cowsay" ];
    darwinPackages = [ "fish" ];
  };
  ours = [
    "ripgrep"
    "nested-tool"
    "cowsay"
    "fish"
  ];
  packages =
    one: t.lib.filter (name: t.lib.elem name ours) (map (it: it.name or "") one.config.environment.systemPackages);
in
{
  expect = {
    "stibnite.json" = packages fleet.ours.stibnite;
    "cinnabar.json" = packages fleet.ours.cinnabar;
  };
  holds = {
  }
  // t.inClan {
    "a Mac in a Clan has the same" = packages fleet.clans.stibnite == packages fleet.ours.stibnite;
    "a host in a Clan has the same" = packages fleet.clans.cinnabar == packages fleet.ours.cinnabar;
  };
  refuses."a package that is none" = packages (fleetWith { packages = [ "nested.toool" ]; }).ours.stibnite;
}
