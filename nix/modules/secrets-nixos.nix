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

  # What sops-nix decrypts it also restarts units for. What the agent decrypts is a reason for systemd to restart them.
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

  # A switch by the agent has put them there before; this is for a start of the machine, when its memory is empty.
  config = lib.optionalAttrs (options ? services.muster-agent) {
    system.activationScripts.muster-secrets = lib.mkIf (cfg.manifest.files != [ ]) {
      deps = [ "specialfs" ];
      text = ''
        ${lib.getExe' config.services.muster-agent.package "muster-agent"} secrets --system "$systemConfig"
      '';
    };
  };
}
