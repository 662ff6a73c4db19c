# darwinModules.muster-secrets
{
  lib,
  config,
  options,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.muster.secrets;
  hasSopsNix = options ? sops.secrets;

  # launchd restarts a job when its plist changes, so the secrets that it uses are hashed into it:
  # `restartUnits` has labels, or names of nix-darwin's jobs.
  job =
    { name, config, ... }:
    let
      mine = lib.filter (it: lib.elem config.serviceConfig.Label it.units || lib.elem name it.units) cfg.restarts;
      hashes = lib.concatMapStringsSep "\n" (it: "${it.name} ${it.fingerprint}") mine;
    in
    {
      config.serviceConfig.EnvironmentVariables = lib.mkIf (mine != [ ]) {
        MUSTER_SECRETS = builtins.hashString "sha256" hashes;
      };
    };
  jobs = mkOption {
    type = types.attrsOf (types.submodule job);
  };
in
{
  imports = [ ./secrets.nix ];

  options.launchd = {
    daemons = jobs;
    agents = jobs;
    user.agents = jobs;
  };

  config = lib.optionalAttrs hasSopsNix {
    # sops-nix writes secrets at the end of an activation, after daemons were reloaded with the old ones.
    system.activationScripts.launchd.text = lib.mkIf (config.sops.secrets != { }) (
      lib.mkBefore ''
        (
        ${lib.concatStrings (
          lib.mapAttrsToList (name: value: ''
            export ${name}='${value}'
          '') config.sops.environment
        )}
        ${config.sops.package}/bin/sops-install-secrets ${config.system.build.sops-nix-manifest}
        )
      ''
    );
  };
}
