# How the parts of an inventory relate: which machine has which tags and roles, and what is wrong with them.
# Everything here follows from the inventory alone, before any service is read.
{ text, names }:
let
  inherit (builtins)
    attrNames
    concatLists
    concatMap
    elem
    filter
    hasAttr
    isList
    isString
    listToAttrs
    mapAttrs
    ;
  inherit (text)
    didYouMean
    listed
    path
    quote
    unique
    ;

  at = place: says: "${path place}: ${says}";
  from = items: value: listToAttrs (map (name: { inherit name; value = value name; }) items);
  sorted = items: attrNames (from items (_: null));
in
rec {
  # A machine as all later steps need it: each field present, tags complete.
  machinesOf =
    inventory:
    mapAttrs (
      name: machine:
      let
        class = names.classOf machine;
        declared = filter (tag: elem name inventory.tags.${tag}) (attrNames inventory.tags);
      in
      {
        inherit name class;
        system = machine.system or null;
        description = machine.description or null;
        buildHost = machine.deploy.buildHost or null;
        tags = sorted ((machine.tags or [ ]) ++ declared ++ [
          "all"
          class
        ]);
        facts = machine.muster or { };
      }
    ) inventory.machines;

  knownTags =
    inventory: machines:
    sorted (
      names.ownTags ++ attrNames inventory.tags ++ concatMap (name: machines.${name}.tags) (attrNames machines)
    );

  membersOf = machines: tag: filter (name: elem tag machines.${name}.tags) (attrNames machines);

  # instances.I.ROLE.MACHINE = the tags through which the machine got the role; none if it is only named.
  rolesOf =
    inventory: machines:
    mapAttrs (
      _: instance:
      mapAttrs (
        _: role:
        let
          tags = machine: filter (tag: elem tag machines.${machine}.tags) (attrNames role.tags);
          members = attrNames role.machines ++ concatMap (membersOf machines) (attrNames role.tags);
        in
        from (filter (name: machines ? ${name}) members) tags
      ) instance.roles
    ) inventory.instances;

  # The same, seen from a machine: { INSTANCE = [ ROLE ]; }.
  rolesOfMachine =
    roles: machine:
    let
      inInstance = instance: filter (role: roles.${instance}.${role} ? ${machine}) (attrNames roles.${instance});
    in
    from (filter (instance: inInstance instance != [ ]) (attrNames roles)) inInstance;

  problems =
    inventory:
    let
      machines = machinesOf inventory;
      known = attrNames machines;
      tags = knownTags inventory machines;
      unknownMachine =
        place: name:
        at place "there is no machine ${quote name}.${didYouMean name known} The inventory has ${listed known}.";
      unknownTag =
        place: name:
        at place (
          if hasAttr name machines then
            "${quote name} is a machine and no tag; write it under `machines`."
          else
            "no machine has the tag ${quote name}.${didYouMean name tags} There are ${listed tags}."
        );

      ofMachine =
        name:
        let
          machine = machines.${name};
          place = [
            "machines"
            name
          ];
          said = inventory.machines.${name};
          foreign = names.otherClass machine.class;
          host = machine.buildHost;
          hostPlace = place ++ [
            "deploy"
            "buildHost"
          ];
          others = filter (other: other != name && machines.${other}.class == machine.class) known;
          instead = if others == [ ] then "there is no other of its class, so take it out" else "write ${listed others}, or take it out";
        in
        concatLists [
          (
            if machine.system == null || names.classOfSystem machine.system == machine.class then
              [ ]
            else
              [
                (at (place ++ [ "system" ]) "${machine.system} is no system of ${
                  names.classes.${machine.class}.noun
                }; write ${
                  listed (map (s: ''"${s}"'') names.classes.${machine.class}.systems)
                }, or machineClass = \"${foreign}\".")
              ]
          )
          (
            if elem foreign (said.tags or [ ]) then
              [
                (at (place ++ [ "tags" ]) "the tag ${quote foreign} is for machines of that class, and ${name} is ${
                  names.classes.${machine.class}.noun
                }; take it out, or correct machineClass.")
              ]
            else
              [ ]
          )
          (
            if host == null then
              [ ]
            else if host == name then
              [ (at hostPlace "a machine that builds for itself needs no build host; take it out.") ]
            else if !(machines ? ${host}) then
              [ (unknownMachine hostPlace host) ]
            else if machines.${host}.class != machine.class then
              [
                (at hostPlace "${host} is ${names.classes.${machines.${host}.class}.noun} and cannot build for ${name}, which is ${
                  names.classes.${machine.class}.noun
                }; ${instead}.")
              ]
            else
              [ ]
          )
          (
            if machine.class == "darwin" && machine.facts.action or "switch" != "switch" then
              [
                (at (place ++ [
                  "muster"
                  "action"
                ]) "a Mac knows the action \"switch\" alone; take it out.")
              ]
            else
              [ ]
          )
        ];

      ofTag =
        tag:
        let
          place = [
            "tags"
            tag
          ];
          members = inventory.tags.${tag};
        in
        if !isList members || !(builtins.all isString members) then
          [ (at place "a tag's members are a list of machines' names.") ]
        else if elem tag names.ownTags then
          [ (at place "every machine has the tags ${listed names.ownTags} by itself; choose another name.") ]
        else if !names.isName tag then
          [ (at place "this is no name for a tag: a name is ${names.nameRule}.") ]
        else
          map (unknownMachine place) (unique (filter (name: !(machines ? ${name})) members));

      ofRole =
        instance: role:
        let
          place = [
            "instances"
            instance
            "roles"
            role
          ];
          value = inventory.instances.${instance}.roles.${role};
        in
        map (
          name:
          if elem name tags then
            at (place ++ [ "machines" name ]) "${quote name} is a tag and no machine; write it under `tags`."
          else
            unknownMachine (place ++ [ "machines" name ]) name
        ) (filter (name: !(machines ? ${name})) (attrNames value.machines))
        ++ map (name: unknownTag (place ++ [ "tags" name ]) name) (
          filter (name: !(elem name tags)) (attrNames value.tags)
        );

      ofInstance =
        instance:
        let
          roles = inventory.instances.${instance}.roles;
          place = [
            "instances"
            instance
            "roles"
          ];
        in
        if roles == { } then
          [ (at place "no role is given, so this instance does nothing; write a role with its machines or tags, or take the instance out.") ]
        else
          concatMap (ofRole instance) (attrNames roles);

      # Whom a rollout names: a machine that does not exist would never vouch, and its wave be another one.
      ofRollout =
        name:
        let
          rollout = inventory.rollouts.${name};
          place = [
            "rollouts"
            name
          ];
          unknown = place: names: map (unknownMachine place) (filter (name: !(machines ? ${name})) names);
          ofWave =
            wave:
            let
              here = place ++ [
                "waves"
                wave.name
              ];
            in
            unknown (here ++ [ "machines" ]) (wave.machines or [ ])
            ++ map (unknownTag (here ++ [ "tags" ])) (filter (tag: !(elem tag tags)) (wave.tags or [ ]));
          after = rollout.after or { };
        in
        concatMap ofWave (rollout.waves or [ ])
        ++ concatMap (
          name: unknown (place ++ [ "after" ]) [ name ] ++ unknown (place ++ [ "after" name ]) after.${name}
        ) (attrNames after);
      wrongTags = concatMap ofTag (attrNames inventory.tags);
    in
    # Everything that uses a machine's tags needs them to be lists.
    if wrongTags != [ ] then
      wrongTags
    else
      concatMap ofMachine known
      ++ concatMap ofInstance (attrNames inventory.instances)
      ++ concatMap ofRollout (attrNames inventory.rollouts);
}
