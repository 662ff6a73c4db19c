# trusted-nix-caches: nix.settings on both classes, unless another program owns nix.conf.
t:
let
  fleetWith =
    modules:
    t.service {
      name = "trusted-nix-caches";
      instance = "caches";
      roles.default.tags.all.settings.caches = {
        ours = {
          url = "https://cache.example.org";
          publicKeys = [ "cache.example.org-1:QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=" ];
        };
        theirs = {
          url = "https://theirs.example.org";
          publicKeys = [ "theirs.example.org-1:QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=" ];
          use = false;
        };
      };
      inherit modules;
    };
  fleet = fleetWith { };
  determinate = fleetWith { stibnite.nix.enable = false; };
  settings =
    one:
    t.lib.getAttrs [
      "substituters"
      "trusted-substituters"
      "trusted-public-keys"
    ] one.config.nix.settings;
in
{
  expect = {
    "stibnite.json" = settings fleet.ours.stibnite;
    "cinnabar.json" = settings fleet.ours.cinnabar;
    "stibnite-without-nix.json" = determinate.ours.stibnite.config.warnings;
  };
  holds = {
  }
  // t.inClan {
    "a Mac in a Clan trusts the same" = settings fleet.clans.stibnite == settings fleet.ours.stibnite;
    "a host in a Clan trusts the same" = settings fleet.clans.cinnabar == settings fleet.ours.cinnabar;
  };
  refuses."a key that is none" =
    settings
      (t.service {
        name = "trusted-nix-caches";
        roles.default.machines.stibnite.settings.caches.ours = {
          url = "https://cache.example.org";
          publicKeys = [ "QUJD" ];
        };
      }).ours.stibnite;
}
