# nixosModules.muster-secrets
{
  lib,
  config,
  options,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.muster.secrets;

  # sops-nix restarts units for what it decrypts. For what the agent decrypts, systemd restarts them.
  service =
    { name, ... }:
    {
      config.restartTriggers = map (it: it.fingerprint) (
        lib.filter (it: it.neededFor == "activation" && lib.elem "${name}.service" it.units) cfg.restarts
      );
    };
in
{
  imports = [ ./secrets.nix ];

  options.systemd.services = mkOption {
    type = types.attrsOf (types.submodule service);
  };

  # A switch by the agent has already put them there; this is for a boot, when memory is empty.
  config = lib.optionalAttrs (options ? services.muster-agent) {
    system.activationScripts.muster-secrets = lib.mkIf (cfg.manifest.files != [ ]) {
      deps = [ "specialfs" ];
      text = ''
        ${lib.getExe' config.services.muster-agent.package "muster-agent"} secrets --system "$systemConfig"
      '';
    };
  };
}
