fleet:
let
  inherit (fleet) good machine roles;
in
{
  "tags that are no list" = {
    inventory = machine "tin" { tags = "servers"; };
    says = [ "machines.tin.tags: this is a string; write a list of strings, `[ \"a\" \"b\" ]`." ];
  };
  "a tag that is no string" = {
    inventory = machine "tin" { tags = [ 7 ]; };
    says = [ "machines.tin.tags: this list holds a number; it is to hold strings alone." ];
  };
  "a tag that the command line cannot name" = {
    inventory = machine "tin" { tags = [ "web servers" ]; };
    says = [
      "machines.tin.tags: `web servers` is no tag: a tag is 1 to 63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit."
    ];
  };
  "the other class as a tag" = {
    inventory = machine "iron" { tags = [ "nixos" ]; };
    says = [
      "machines.iron.tags: the tag `nixos` is for machines of that class, and iron is a Mac; take it out, or correct machineClass."
    ];
  };
  "a tag that every machine has by itself" = {
    inventory = good // { tags.all = [ "tin" ]; };
    says = [
      "tags.all: every machine has the tags all, nixos, darwin by itself; choose another name."
    ];
  };
  "the same, computed" = {
    inventory = good // { tags = _: { darwin = [ "iron" ]; }; };
    says = [
      "tags.darwin: every machine has the tags all, nixos, darwin by itself; choose another name."
    ];
  };
  "a tag of a machine that does not exist" = {
    inventory = good // { tags.lab = [ "tinn" ]; };
    says = [
      "tags.lab: there is no machine `tinn`. Did you mean `tin`? The inventory has iron, lead, tin, zinc."
    ];
  };
  "a computed tag that is no list" = {
    inventory = good // { tags = _: { lab = "tin"; }; };
    says = [ "tags.lab: a tag's members are a list of machines' names." ];
  };
  "an unknown tag in a role" = {
    inventory = roles { server.tags.racks = { }; };
    says = [
      "instances.web.roles.server.tags.racks: no machine has the tag `racks`. There are all, darwin, nixos, servers."
    ];
  };
  "a misspelt tag in a role" = {
    inventory = roles { server.tags = [ "server" ]; };
    says = [
      "instances.web.roles.server.tags.server: no machine has the tag `server`. Did you mean `servers`? There are all, darwin, nixos, servers."
    ];
  };
  "a machine in place of a tag" = {
    inventory = roles { server.tags.tin = { }; };
    says = [
      "instances.web.roles.server.tags.tin: `tin` is a machine and no tag; write it under `machines`."
    ];
  };
}
