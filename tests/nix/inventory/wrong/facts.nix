fleet:
let
  facts = value: fleet.machine "iron" { muster = value; };
in
{
  "a misspelt fact" = {
    inventory = facts { deadline = 60; };
    says = [
      "machines.iron.muster.deadline: there is no such field. It may have action, checks, deadlineSeconds, trustedNixKeys."
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
      "machines.iron.muster.checks.web: a check asks one thing; write exactly one of command, http, tcp, not http, tcp."
    ];
  };
  "a check that asks nothing" = {
    inventory = facts { checks.web.tries = 3; };
    says = [
      "machines.iron.muster.checks.web: a check asks one thing; write exactly one of command, http, tcp."
    ];
  };
  "a command as one string" = {
    inventory = facts { checks.data.command = "test -d /data"; };
    says = [
      "machines.iron.muster.checks.data.command: this is a string; write a list of strings, `[ \"a\" \"b\" ]`."
    ];
  };
}
