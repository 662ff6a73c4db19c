# The order of a Mac's activation: what the example systems do is what nix-darwin's own text does, by name and
# in order.
t:
let
  inherit (t) lib;
  # Every stage of the text becomes a mark. A name that no longer exists is an error.
  marked =
    names:
    (t.darwin {
      modules = [
        {
          system.activationScripts = lib.genAttrs names (name: {
            text = lib.mkForce "@STAGE ${name}@";
          });
        }
      ];
    }).config;
  plain = (t.darwin { modules = [ ]; }).config;
  stages = text: lib.concatLists (lib.filter lib.isList (builtins.split "@STAGE ([A-Za-z-]+)@" text));
  # All stages, without the combined text and those that remain only to report a rename.
  names = lib.subtractLists [
    "script"
    "extraPostActivation"
    "extraUserPostActivation"
  ] (lib.attrNames plain.system.activationScripts);
  real = marked names;
  activate = real.system.activationScripts.script.text;
  boot = real.launchd.daemons.activate-system.script;
  checks = plain.system.activationScripts.checks.text;

  # Where one text is in another.
  place =
    needle: text:
    let
      before = builtins.head (lib.splitString needle text);
    in
    if lib.hasInfix needle text then builtins.stringLength before else throw "'${needle}' is not there any more";
  comes = one: other: text: place one text < place other text;

  fixture = name: builtins.readFile (t.repository + "/tests/fixtures/fleet/systems/${name}");
  ours = lib.concatLists (
    lib.filter (it: it != null) (
      map (line: builtins.match "stage ([A-Za-z-]+)" line) (lib.splitString "\n" (fixture "activate.sh"))
    )
  );
  tail = text: needle: lib.last (lib.splitString needle text);
in
{
  expect = {
    "stages.json" = stages activate;
    "boot.json" = stages boot;
  };
  holds = {
    "the example systems have the stages of nix-darwin's activation, in its order" = ours == stages activate;
    "every part of an activation that nix-darwin knows is in it" =
      lib.sort lib.lessThan (lib.unique (stages activate)) == lib.sort lib.lessThan names;
    "the first thing is who runs it, and the code is 2" =
      comes "$(id -u) -ne 0" "@STAGE preActivation@" activate && lib.hasInfix "exit 2" activate;
    "the link and its root come last" =
      comes "@STAGE postActivation@" "/run/current-system" activate
      && comes "/run/current-system" "/nix/var/nix/gcroots/current-system" activate;
    "it ends at the first error" = comes "set -e" "@STAGE preActivation@" activate;
    "a preflight ends before the check of /etc" = comes "checkActivation" "etcSha256Hashes" checks;
    "and so it does in the example systems" = comes "checkActivation" "check_etc" (fixture "activate.sh");
    "files of others end it with 2, in words that the agent knows" =
      lib.hasInfix "exit 2" (tail checks "etcSha256Hashes")
      && lib.hasInfix "Unexpected files in /etc" checks
      && lib.hasInfix "declare -A etcSha256Hashes=(" checks;
    "what is in /etc is a link below /etc/static" = lib.hasInfix "etcStaticFile=/etc/static/$subPath" checks;
    "the parts that come behind the checks say that they set something up" = lib.all (
      part: lib.hasInfix "setting up " plain.system.activationScripts.${part}.text
    ) [ "applications" "pam" "etc" "launchd" ];
    "without a folder for links it ends with 1" =
      lib.hasInfix "exit 1" plain.system.activationScripts.createRun.text;
    "a boot links the profile first" =
      comes "/run/current-system" "@STAGE checks@" boot && lib.hasInfix "/nix/var/nix/profiles/system/systemConfig" boot;
    "and does then the checks, /etc and the keyboard, and nothing of users, applications and jobs" =
      stages boot == [
        "checks"
        "etc"
        "keyboard"
      ];
    "the job of the boot is known by its name" =
      lib.hasSuffix ".activate-system" plain.launchd.daemons.activate-system.serviceConfig.Label;
    "which jobs go is asked of what the link points at" =
      lib.hasInfix "for f in /run/current-system/Library/LaunchDaemons/*" plain.system.activationScripts.launchd.text;
  };
}
