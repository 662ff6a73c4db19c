# nixosModules.muster-secrets
{
  lib,
  config,
  options,
  ...
}:
let
  cfg = config.muster.secrets;
in
{
  imports = [ ./secrets.nix ];

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
