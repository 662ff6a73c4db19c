# Binary caches that the fleet's machines trust.
{ lib, ... }:
let
  caches =
    { settings, ... }:
    let
      all = lib.attrValues settings.caches;
      urls = wanted: map (cache: cache.url) (lib.filter (cache: cache.use == wanted) all);
    in
    {
      substituters = urls true;
      trusted-substituters = urls false;
      trusted-public-keys = lib.unique (lib.concatMap (cache: cache.publicKeys) all);
    };
in
{
  _class = "clan.service";
  manifest = {
    name = "muster/trusted-nix-caches";
    description = "Binary caches that machines of both classes trust";
    categories = [ "System" ];
    readme = builtins.readFile ./README.md;
  };
  roles.default = {
    description = "Trusts the caches.";
    interface.options.caches = lib.mkOption {
      type = lib.types.attrsOf (
        lib.types.submodule {
          options = {
            url = lib.mkOption {
              type = lib.types.str;
              example = "https://nix-community.cachix.org";
              description = "The cache's address.";
            };
            publicKeys = lib.mkOption {
              type = lib.types.listOf (lib.types.strMatching "[^: ]+:[A-Za-z0-9+/]+=*");
              description = "The keys that sign what is in it, each as NAME:KEY.";
            };
            use = lib.mkOption {
              type = lib.types.bool;
              default = true;
              description = "Whether machines ask the cache by themselves; otherwise users may ask for it.";
            };
          };
        }
      );
      description = "The caches, by whatever names. There is no default: whom to trust is yours to say.";
    };
    perInstance = instance@{ instanceName, machine, settings, ... }: {
      nixosModule.nix.settings = caches instance;
      darwinModule =
        { config, ... }:
        {
          nix.settings = lib.mkIf config.nix.enable (caches instance);
          warnings = lib.optional (!config.nix.enable) ''
            instances.${instanceName}: nix.enable is off on ${machine.name}, so somebody else owns nix.conf and the caches are not trusted there. With Determinate Nix, put substituters and trusted-public-keys into /etc/nix/nix.custom.conf.
          '';
        };
    };
  };
}
