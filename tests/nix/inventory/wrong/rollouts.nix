fleet:
let
  inherit (fleet) good;
  weekly = fields: good // { rollouts.weekly = fields; };
  wave = fields: weekly { waves = [ ({ name = "canaries"; } // fields) ]; };
in
{
  "a rollout's name is a path segment" = {
    inventory = good // { rollouts."a/b" = { }; };
    says = [
      "rollouts.\"a/b\": this is no name for a rollout: a name is 1 to 63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit."
    ];
  };
  "a misspelt field of a rollout" = {
    inventory = weekly { wave = [ ]; };
    says = [
      "rollouts.weekly.wave: there is no such field. Did you mean `waves`? It may have after, budget, failures, seed, waves."
    ];
  };
  "a misspelt field of a wave" = {
    inventory = wave { maxInflight = 3; };
    says = [
      "rollouts.weekly.waves.canaries.maxInflight: there is no such field. Did you mean `maxInFlight`? It may have atLeast, class, machines, maxInFlight, name, percent, soak, tags, windows."
    ];
  };
  "a wave without a name" = {
    inventory = weekly { waves = [ { percent = 10; } ]; };
    says = [ "rollouts.weekly.waves: a wave has a `name`." ];
  };
  "numbers that are none" = {
    inventory = wave {
      percent = 0;
      atLeast = "two";
      maxInFlight = "10 %";
    };
    says = [
      "rollouts.weekly.waves.canaries.atLeast: there is no `two`; write a whole number of machines, or a percentage such as \"10%\"."
      "rollouts.weekly.waves.canaries.maxInFlight: there is no `10 %`; write a whole number of machines, or a percentage such as \"10%\"."
      "rollouts.weekly.waves.canaries.percent: 0 is outside 1 to 100 percent."
    ];
  };
  "a wave that nobody need have soaked in" = {
    inventory = wave { atLeast = 0; };
    says = [ "rollouts.weekly.waves.canaries.atLeast: 0 is outside 1 to 10000 machines." ];
  };
  "a soak without a unit" = {
    inventory = wave { soak = "90"; };
    says = [
      "rollouts.weekly.waves.canaries.soak: there is no time `90`; write days, hours, minutes and seconds, \"2h\" or \"1h30m\" for example."
    ];
  };
  "a failure that does not exist" = {
    inventory = weekly { failures = [ "rolled-bak" ]; };
    says = [
      "rollouts.weekly.failures: there is no `rolled-bak`; write \"rolled-back\", \"degraded\", \"needs-human\". Did you mean `rolled-back`?"
    ];
  };
  "machines and tags that do not exist" = {
    inventory = weekly {
      waves = [
        {
          name = "canaries";
          machines = [ "tn" ];
          tags = [ "server" ];
        }
      ];
      after.tin = [ "copper" ];
    };
    says = [
      "rollouts.weekly.waves.canaries.machines: there is no machine `tn`. Did you mean `tin`? The inventory has iron, lead, tin, zinc."
      "rollouts.weekly.waves.canaries.tags: no machine has the tag `server`. Did you mean `servers`? There are all, darwin, nixos, servers."
      "rollouts.weekly.after.tin: there is no machine `copper`. The inventory has iron, lead, tin, zinc."
    ];
  };
}
