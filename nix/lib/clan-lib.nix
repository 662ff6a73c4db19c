# What Clan services get as `clanLib`, as far as a service needs it to describe itself: keys of exports, and
# public values of vars. The names and forms are Clan's.
{ lib }:
let
  parts = [
    "serviceName"
    "instanceName"
    "roleName"
    "machineName"
  ];
in
rec {
  # SERVICE:INSTANCE:ROLE:MACHINE, where an empty part means all.
  buildScopeKey =
    scope:
    let
      values = map (part: scope.${part} or "") parts;
      colon = lib.findFirst (lib.hasInfix ":") null values;
    in
    if colon != null then
      throw "buildScopeKey: `${colon}` contains a colon, which separates the parts of a key."
    else if scope.serviceName or "" == "" && scope.machineName or "" == "" then
      throw "buildScopeKey: name the service or the machine."
    else
      lib.concatStringsSep ":" values;

  parseScope =
    key:
    let
      values = lib.splitString ":" key;
    in
    if builtins.length values != 4 then
      throw "parseScope: `${key}` is no key of exports; it is SERVICE:INSTANCE:ROLE:MACHINE."
    else
      builtins.listToAttrs (lib.zipListsWith lib.nameValuePair parts values);

  selectExports =
    wanted: exports:
    removeAttrs exports (lib.filter (key: !wanted (parseScope key)) (builtins.attrNames exports));

  getExport =
    scope: exports:
    let
      key = buildScopeKey scope;
    in
    exports.${key}
      or (throw "getExport: nothing is exported as `${key}`; there are ${lib.concatStringsSep ", " (builtins.attrNames exports)}.");

  getPublicValue =
    {
      flake,
      generator,
      file,
      machine ? null,
      default ? throw "The public value ${generator}/${file} of ${
        if machine == null then "the fleet" else machine
      } is not there yet: generate the vars, commit them, and evaluate again.",
      backend ? "in_repo",
      ...
    }:
    let
      folder = if machine == null then "shared" else "per-machine/${machine}";
      value = flake + "/vars/${folder}/${generator}/${file}/value";
    in
    if backend != "in_repo" then
      throw "getPublicValue: there is no backend `${backend}`; public values are in the flake."
    else if builtins.pathExists value then
      builtins.readFile value
    else
      default;
}
