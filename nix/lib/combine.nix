# One inventory from several: a fleet may keep its machines in one file and its services in others. What
# appears in two of them is a mistake, since neither is meant to win.
{ text, names }:
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    filter
    foldl'
    isFunction
    isList
    listToAttrs
    mapAttrs
    ;
  inherit (text) path unique;

  namesIn = field: parts: unique (concatMap (part: attrNames (part.value.${field} or { })) parts);
  holders = field: name: filter (part: part.value ? ${field} && part.value.${field} ? ${name});

  union =
    field: parts: foldl' (all: part: (part.value.${field} or { }) // all) { } parts;

  twice =
    field: parts:
    concatMap (
      name:
      let
        labels = map (part: part.label) (holders field name parts);
      in
      if builtins.length labels < 2 then
        [ ]
      else
        [
          "${
            path [
              field
              name
            ]
          }: this is in ${concatStringsSep " and in " labels}; keep one of them."
        ]
    ) (namesIn field parts);

  # Tags that are given in several inventories have the members of all of them.
  joined = foldl' (
    all: part:
    all // mapAttrs (tag: members: if isList members then (all.${tag} or [ ]) ++ members else members) part
  ) { };

  # A function computes tags from the others and from the machines, as Clan's may.
  tagsOf =
    machines: parts:
    let
      given = map (part: part.value.tags or { }) parts;
      byClass = class: {
        name = class;
        value = filter (name: names.classOf machines.${name} == class) (attrNames machines);
      };
      config = {
        all = attrNames machines;
      }
      // listToAttrs (map byClass names.classNames)
      // tags;
      tags = joined (map (tags: if isFunction tags then tags { inherit config machines; } else tags) given);
    in
    tags;

  # `roles.R.tags = [ "all" ]` is short for tags without settings of their own.
  role =
    value:
    let
      tags = value.tags or { };
    in
    {
      machines = value.machines or { };
      tags =
        if isList tags then
          listToAttrs (
            map (name: {
              inherit name;
              value = { };
            }) tags
          )
        else
          tags;
      settings = value.settings or { };
      extraModules = value.extraModules or [ ];
    };
in
rec {
  # parts: [ { label; value; } ], each of the right shape.
  problems = parts: concatMap (field: twice field parts) [
    "meta"
    "machines"
    "instances"
    "rollouts"
  ];

  combined =
    parts:
    let
      machines = union "machines" parts;
    in
    {
      meta = union "meta" parts;
      rollouts = union "rollouts" parts;
      inherit machines;
      tags = tagsOf machines parts;
      instances = mapAttrs (name: value: {
        module = {
          input = value.module.input or null;
          name = value.module.name or name;
        };
        roles = mapAttrs (_: role) (value.roles or { });
      }) (union "instances" parts);
    };
}
