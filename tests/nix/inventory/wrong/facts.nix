fleet:
let
  facts = value: fleet.machine "iron" { muster = value; };
in
{
  "a misspelt fact" = {
    inventory = facts { deadline = 60; };
    says = [
      "machines.iron.muster.deadline: there is no such field. It may have action, after, before, checks, cores, deadlineSeconds, drift, inhibited, keepGenerations, maxJobs, metered, minimumBattery and 7 more."
    ];
  };
  "tags one level too deep" = {
    inventory = facts { tags = [ "laptops" ]; };
    says = [ "machines.iron.muster.tags: tags stand one level higher, in the machine itself." ];
  };
  "a deadline in words" = {
    inventory = facts { deadlineSeconds = "5 minutes"; };
    says = [
      "machines.iron.muster.deadlineSeconds: this is a string; write a whole number of seconds."
    ];
  };
  "a deadline that nothing can keep" = {
    inventory = facts { deadlineSeconds = 5; };
    says = [ "machines.iron.muster.deadlineSeconds: 5 is outside 10 to 86400 seconds." ];
  };
  "a window without an end" = {
    inventory = facts { window.from = "22:00"; };
    says = [ "machines.iron.muster.window: a window has a time `from` and a time `to`; `to` is missing." ];
  };
  "a time that no clock shows" = {
    inventory = facts {
      window = [
        {
          from = "22:00";
          to = "25:00";
        }
      ];
    };
    says = [ "machines.iron.muster.window.to: there is no time `25:00`; write HH:MM, from 00:00 to 24:00." ];
  };
  "a day in full" = {
    inventory = facts {
      window = {
        days = [ "saturday" ];
        from = "22:00";
        to = "04:00";
      };
    };
    says = [
      "machines.iron.muster.window.days: there is no `saturday`; write \"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\"."
    ];
  };
  "a policy in other words" = {
    inventory = facts {
      reboot = "always";
      urgent = "yes";
      minimumBattery = 120;
    };
    says = [
      "machines.iron.muster.minimumBattery: 120 is outside 0 to 100 percent."
      "machines.iron.muster.reboot: there is no `always`; write \"never\", \"window\", \"now\"."
      "machines.iron.muster.urgent: this is a string; write true or false."
    ];
  };
  "a hook that runs nothing" = {
    inventory = facts { before.drain = { }; };
    says = [ "machines.iron.muster.before.drain: a hook has a `command`." ];
  };
  "an action that does not exist" = {
    inventory = facts { action = "swich"; };
    says = [
      "machines.iron.muster.action: there is no `swich`; write \"switch\", \"boot\", \"test\", \"dry-activate\". Did you mean `switch`?"
    ];
  };
  "an action that a Mac does not know" = {
    inventory = facts { action = "boot"; };
    says = [
      "machines.iron.muster.action: a Mac knows the action \"switch\" alone; take it out."
    ];
  };
  "a check that asks two things" = {
    inventory = facts {
      checks.web = {
        http = "http://127.0.0.1/";
        tcp = "127.0.0.1:80";
      };
    };
    says = [
      "machines.iron.muster.checks.web: a check asks one thing; write exactly one of command, http, tcp, unit, label, not http, tcp."
    ];
  };
  "a check that asks nothing" = {
    inventory = facts { checks.web.tries = 3; };
    says = [
      "machines.iron.muster.checks.web: a check asks one thing; write exactly one of command, http, tcp, unit, label."
    ];
  };
  "a command as one string" = {
    inventory = facts { checks.data.command = "test -d /data"; };
    says = [
      "machines.iron.muster.checks.data.command: this is a string; write a list of strings, `[ \"a\" \"b\" ]`."
    ];
  };
}
