# What an inventory may say: which fields there are, and what each holds. Finds everything that is wrong in
# itself; what is wrong in relation (an unknown machine, another class) is found by relations.nix.
#
# A check is a function `place: value: [ problem ]`; a problem is one sentence that begins with its place.
{ text, names }:
let
  inherit (builtins)
    any
    attrNames
    concatMap
    elem
    filter
    isAttrs
    isFunction
    isInt
    isList
    isPath
    isString
    length
    match
    ;
  inherit (text)
    didYouMean
    kind
    listed
    path
    quote
    ;

  at = place: says: "${path place}: ${says}";
  bad = place: says: [ (at place says) ];
  fine = _: _: [ ];

  # A set with these fields and no others. `said` explains fields that people may bring from elsewhere.
  record =
    {
      fields,
      said ? { },
    }:
    place: value:
    if !isAttrs value then
      bad place "this is ${kind value}; write a set with ${listed (attrNames fields)}."
    else
      concatMap (
        name:
        let
          here = place ++ [ name ];
        in
        if fields ? ${name} then
          fields.${name} here value.${name}
        else if said ? ${name} then
          bad here said.${name}
        else
          bad here "there is no such field.${didYouMean name (attrNames fields)} It may have ${listed (attrNames fields)}."
      ) (attrNames value);

  # A set whose names are the user's own.
  eachNamed =
    {
      what,
      check,
      example,
      name ? fine,
    }:
    place: value:
    if !isAttrs value then
      bad place "this is ${kind value}; write a set of ${what}, ${quote example} for example."
    else
      concatMap (
        key:
        let
          here = place ++ [ key ];
        in
        name here key ++ check here value.${key}
      ) (attrNames value);

  named =
    what: place: key:
    if names.isName key then [ ] else bad place "this is no name for ${what}: a name is ${names.nameRule}.";

  optional = check: place: value: if value == null then [ ] else check place value;

  string =
    place: value: if isString value then [ ] else bad place "this is ${kind value}; write a string.";

  strings =
    place: value:
    if !isList value then
      bad place "this is ${kind value}; write a list of strings, ${quote ''[ "a" "b" ]''}."
    else
      concatMap (
        item: if isString item then [ ] else bad place "this list holds ${kind item}; it is to hold strings alone."
      ) value;

  oneOf =
    known: place: value:
    if isString value && elem value known then
      [ ]
    else if isString value then
      bad place "there is no ${quote value}; write ${listed (map (word: ''"${word}"'') known)}.${didYouMean value known}"
    else
      bad place "this is ${kind value}; write ${listed (map (word: ''"${word}"'') known)}.";

  number =
    low: high: unit: place: value:
    if !isInt value then
      bad place "this is ${kind value}; write a whole number of ${unit}."
    else if value < low || value > high then
      bad place "${toString value} is outside ${toString low} to ${toString high} ${unit}."
    else
      [ ];

  class =
    place: value:
    if isString value && !names.isClass value && elem value [ "macos" "mac" "osx" "macOS" ] then
      bad place ''there is no ${quote value}; the class of a Mac is "darwin".''
    else
      oneOf names.classNames place value;

  system =
    place: value:
    if names.isSystem value then
      [ ]
    else if isString value && builtins.match ".*-macos" value != null then
      bad place ''there is no system ${quote value}; a Mac's is "aarch64-darwin".''
    else if isString value then
      bad place "there is no system ${quote value}; write ${
        listed (concatMap (name: map (word: ''"${word}"'') names.classes.${name}.systems) names.classNames)
      }."
    else
      bad place "this is ${kind value}; write a system such as \"x86_64-linux\" or \"aarch64-darwin\".";

  tags =
    place: value:
    strings place value
    ++ (
      if !isList value then
        [ ]
      else
        concatMap (
          tag:
          if isString tag && !names.isName tag then
            bad place "${quote tag} is no tag: a tag is ${names.nameRule}."
          else
            [ ]
        ) value
    );

  buildHost =
    place: value:
    if isString value && builtins.match ".*[@:].*" value != null then
      bad place "${quote value} is an address; write the name of a machine of this inventory, without user or port."
    else
      string place value;

  actions = [
    "switch"
    "boot"
    "test"
    "dry-activate"
  ];
  probes = [
    "command"
    "http"
    "tcp"
    "unit"
    "label"
  ];
  check =
    place: value:
    let
      shape = record {
        fields = {
          command = strings;
          http = string;
          tcp = string;
          unit = string;
          label = string;
          timeoutSeconds = number 1 86400 "seconds";
          tries = number 1 1000 "tries";
        };
      } place value;
      given = filter (probe: isAttrs value && value ? ${probe}) probes;
    in
    shape
    ++ (
      if shape == [ ] && length given != 1 then
        bad place "a check asks one thing; write exactly one of ${listed probes}${
          if given == [ ] then "" else ", not ${listed given}"
        }."
      else
        [ ]
    );

  bool =
    place: value: if builtins.isBool value then [ ] else bad place "this is ${kind value}; write true or false.";

  timeOfDay =
    place: value:
    if isString value && builtins.match "([01][0-9]|2[0-3]):[0-5][0-9]|24:00" value != null then
      [ ]
    else if isString value then
      bad place "there is no time ${quote value}; write HH:MM, from 00:00 to 24:00."
    else
      bad place "this is ${kind value}; write a time such as \"22:00\".";

  weekdays = [
    "mon"
    "tue"
    "wed"
    "thu"
    "fri"
    "sat"
    "sun"
  ];
  window =
    place: value:
    let
      one = record {
        fields = {
          days =
            place: value:
            strings place value
            ++ (if isList value then concatMap (oneOf weekdays place) (filter isString value) else [ ]);
          from = timeOfDay;
          to = timeOfDay;
          zone = optional string;
        };
      };
      missing =
        place: value:
        concatMap (
          name:
          if isAttrs value && !(value ? ${name}) then
            bad place "a window has a time `from` and a time `to`; ${quote name} is missing."
          else
            [ ]
        ) [
          "from"
          "to"
        ];
      whole = place: value: one place value ++ missing place value;
    in
    if isList value then concatMap (whole place) value else whole place value;

  hook =
    place: value:
    record {
      fields = {
        command = strings;
        timeoutSeconds = optional (number 1 3600 "seconds");
      };
    } place value
    ++ (if isAttrs value && !(value ? command) then bad place "a hook has a `command`." else [ ]);
  hooks = eachNamed {
    what = "hooks";
    check = hook;
    example = ''drain.command = [ "/run/current-system/sw/bin/drain" ]'';
  };

  # When and how a machine takes a generation; docs/operators.md explains the settings.
  policy = {
    inherit window;
    urgent = bool;
    reboot = oneOf [
      "never"
      "window"
      "now"
    ];
    drift = oneOf [
      "report"
      "enforce"
    ];
    inhibited = oneOf [
      "boot"
      "wait"
    ];
    minimumBattery = number 0 100 "percent";
    metered = oneOf [
      "go"
      "wait"
    ];
    minimumDiskMib = number 0 1073741824 "MiB";
    minimumMemoryMib = number 0 1073741824 "MiB";
    maxJobs = number 1 1024 "jobs";
    cores = number 1 1024 "cores";
    nice = number 0 19 "steps";
    keepGenerations = number 2 10000 "generations";
    before = hooks;
    after = hooks;
  };

  facts = record {
    fields = policy // {
      deadlineSeconds = optional (number 10 86400 "seconds");
      action = oneOf actions;
      checks = eachNamed {
        what = "checks";
        inherit check;
        example = ''ssh.tcp = "127.0.0.1:22"'';
      };
      trustedNixKeys = strings;
    };
    said.tags = "tags stand one level higher, in the machine itself.";
  };

  machine = record {
    fields = {
      machineClass = class;
      system = optional system;
      inherit tags;
      description = optional string;
      deploy = record {
        fields.buildHost = optional buildHost;
        said.targetHost = "Muster's machines pull and need no address; take it out.";
        said.forwardAgent = "Muster's machines pull and nobody logs in for an update; take it out.";
      };
      muster = facts;
    };
    said = {
      class = "the field is called machineClass, as in Clan.";
      name = "a machine's name is the attribute itself; take this out.";
      modules = "modules stand in machines/NAME/configuration.nix, or in mkFleet's argument `machines`.";
    };
  };

  # Settings become part of the serialised inventory, as in Clan; what a module computes belongs in the
  # service.
  plainData =
    place: value:
    if isFunction value then
      bad place "this is a function; settings are plain data, and what depends on a machine stands in the service."
    else if isPath value then
      bad place "this is a path; write a string, since settings are plain data."
    else if isList value then
      concatMap (plainData place) value
    else if isAttrs value && value ? outPath then
      bad place "this is a package or a source; write its name as a string, since settings are plain data."
    else if isAttrs value then
      concatMap (name: plainData (place ++ [ name ]) value.${name}) (attrNames value)
    else
      [ ];
  settings =
    place: value:
    if !isAttrs value then
      bad place "this is ${kind value}; write a set of settings."
    else if value ? imports then
      bad (place ++ [ "imports" ]) "settings are plain data and import nothing."
    else
      plainData place value;

  member = record { fields = { inherit settings; }; };
  modules =
    place: value:
    if !isList value then
      bad place "this is ${kind value}; write a list of modules, ${quote "[ ./web.nix ]"}."
    else if any isString value then
      bad place "a module is a path, a set or a function, not a string; write it without quotes, ${quote "./web.nix"}."
    else
      [ ];
  role = record {
    fields = {
      machines =
        place: value:
        if isList value then
          bad place "this is a list; write ${quote "machines.NAME = { }"} for each machine."
        else
          eachNamed {
            what = "machines";
            check = member;
            example = "stibnite = { }";
          } place value;
      tags =
        place: value:
        if isList value then
          strings place value
        else
          eachNamed {
            what = "tags";
            check = member;
            example = "darwin = { }";
          } place value;
      inherit settings;
      extraModules = modules;
    };
    said.perInstance = "this belongs into the service, not into the inventory.";
  };

  instance = record {
    fields = {
      module = record {
        fields = {
          input = optional string;
          name = string;
        };
      };
      roles = eachNamed {
        what = "roles";
        check = role;
        example = ''default.tags.all = { }'';
      };
    };
    said = {
      settings = "settings stand in a role: ${quote "roles.ROLE.settings"}, or those of a machine or tag in it.";
      machines = "machines stand in a role: ${quote "roles.ROLE.machines.NAME = { }"}.";
      tags = "tags stand in a role: ${quote "roles.ROLE.tags.TAG = { }"}.";
    };
  };

  fleetTags =
    place: value:
    if isFunction value then
      [ ]
    else
      eachNamed {
        what = "tags";
        example = ''servers = [ "cinnabar" ]'';
        name =
          here: tag:
          if elem tag names.ownTags then
            bad here "every machine has the tags ${listed names.ownTags} by itself; choose another name."
          else
            named "a tag" here tag;
        check = strings;
      } place value;

  # A number of machines, or a part of them.
  quantity =
    low: place: value:
    if isString value && match "(100|[1-9]?[0-9])%" value != null then
      [ ]
    else if isInt value then
      number low 10000 "machines" place value
    else if isString value then
      bad place "there is no ${quote value}; write a whole number of machines, or a percentage such as \"10%\"."
    else
      bad place "this is ${kind value}; write a whole number of machines, or a percentage such as \"10%\".";
  duration =
    place: value:
    if isString value && match "([0-9]{1,5}[dhms])+" value != null then
      [ ]
    else if isString value then
      bad place "there is no time ${quote value}; write days, hours, minutes and seconds, \"2h\" or \"1h30m\" for example."
    else
      bad place "this is ${kind value}; write a time such as \"2h\" or \"15m\".";
  listOf =
    what: check: place: value:
    if isList value then
      concatMap (check place) value
    else
      bad place "this is ${kind value}; write a list of ${what}.";

  # The machines that switch in one go; docs/rollouts.md explains the settings.
  wave =
    place: value:
    let
      here = if isAttrs value && isString (value.name or null) then place ++ [ value.name ] else place;
    in
    record {
      fields = {
        name = string;
        machines = strings;
        inherit tags;
        class = optional class;
        percent = optional (number 1 100 "percent");
        atLeast = optional (quantity 1);
        soak = optional duration;
        maxInFlight = optional (quantity 1);
        windows = listOf "windows" window;
      };
      said.window = "the field of a wave is called windows, a list.";
    } here value
    ++ (if isAttrs value && !(value ? name) then bad here "a wave has a `name`." else [ ]);
  rollout = record {
    fields = {
      waves = listOf "waves" wave;
      seed = optional string;
      budget = optional (quantity 0);
      failures =
        place: value:
        strings place value
        ++ (if isList value then concatMap (oneOf failures place) (filter isString value) else [ ]);
      after = eachNamed {
        what = "machines";
        example = ''app1 = [ "db1" ]'';
        check = strings;
      };
    };
  };
  failures = [
    "rolled-back"
    "degraded"
    "needs-human"
  ];

  fields = {
    meta = record {
      fields = {
        name = string;
        description = optional string;
        domain = optional string;
      };
    };
    machines = eachNamed {
      what = "machines";
      name = named "a machine";
      check = machine;
      example = ''stibnite.machineClass = "darwin"'';
    };
    tags = fleetTags;
    instances = eachNamed {
      what = "instances";
      name = named "an instance";
      check = instance;
      example = ''sshd.roles.server.tags.nixos = { }'';
    };
    rollouts = eachNamed {
      what = "rollouts";
      name = named "a rollout";
      check = rollout;
      example = ''weekly.waves = [ { name = "canaries"; tags = [ "canary" ]; } ]'';
    };
  };
in
{
  problems =
    value:
    if !isAttrs value then
      [ "inventory: this is ${kind value}; write a set with ${listed (attrNames fields)}." ]
    else
      record {
        inherit fields;
        said.services = "Clan's older `services` are gone; write `instances`.";
        said.modules = "services of your own are mkFleet's argument `modules`.";
      } [ ] value;
}
