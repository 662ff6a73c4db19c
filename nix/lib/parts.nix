# Whether each machine can take the part that the inventory gives it: the roles that a service has, what each
# makes of a machine of this class, and how many machines it needs. Based on what the services declared:
#
#   services.INSTANCE = {
#     title;                      # INPUT/NAME
#     constraints;                # of its manifest: { maxInstances; roles.R = { minMachines; maxMachines; }; }
#     roles = [ NAME ];           # that the service has
#     machine = M: { nixos; darwin; };         # whether perMachine gives a module for the class
#     member = ROLE: M: { nixos; darwin; };    # whether perInstance does
#   };
{ text, names }:
let
  inherit (builtins)
    attrNames
    concatMap
    elem
    filter
    length
    ;
  inherit (text)
    didYouMean
    listed
    path
    quote
    ;
  at = place: says: "${path place}: ${says}";

  roleProblems =
    service: machines: instance: role: members:
    let
      place = [
        "instances"
        instance
        "roles"
        role
      ];
      limits = service.constraints.roles.${role} or { };
      least = limits.minMachines or null;
      most = limits.maxMachines or null;
      count = length (attrNames members);
      given = name: class: (service.member role name).${class} || (service.machine name).${class};

      through =
        name:
        if members.${name} == [ ] then
          "take ${quote "machines.${name}"} out"
        else
          "name machines or a narrower tag in place of ${listed (map quote members.${name})}";
      ofMachine =
        name:
        let
          class = machines.${name}.class;
          other = names.otherClass class;
        in
        # A role that gives neither is only a membership, or extraModules do its work.
        if given name class || !(given name other) then
          [ ]
        else
          [
            (at place "${name} is ${names.classes.${class}.noun}, and this role of ${service.title} has no ${
              names.classes.${class}.module
            }, so it would do nothing there; ${through name}.")
          ];
    in
    concatMap ofMachine (attrNames members)
    ++ (
      if least != null && count < least then
        [ (at place "${service.title} wants at least ${toString least} machines in this role, and the inventory gives it ${toString count}.") ]
      else
        [ ]
    )
    ++ (
      if most != null && count > most then
        [ (at place "${service.title} allows at most ${toString most} machines in this role, and the inventory gives it ${listed (attrNames members)}.") ]
      else
        [ ]
    );

  # Roles with a minimum number of machines that the instance does not even name.
  missingRoles =
    service: instance: roles:
    concatMap (
      role:
      let
        least = service.constraints.roles.${role}.minMachines or null;
      in
      if roles ? ${role} || least == null || least == 0 then
        [ ]
      else
        [
          (at [
            "instances"
            instance
            "roles"
          ] "${service.title} wants at least ${toString least} machines in its role ${quote role}; write roles.${role}.")
        ]
    ) (attrNames (service.constraints.roles or { }));

  tooMany =
    services: instance:
    let
      service = services.${instance};
      most = service.constraints.maxInstances or null;
      same = filter (other: services.${other}.title == service.title) (attrNames services);
    in
    if most == null || length same <= most then
      [ ]
    else
      [
        (at [
          "instances"
          instance
        ] "${service.title} allows at most ${toString most} instances, and the inventory has ${listed same}.")
      ];
in
{
  # roles: instances.I.ROLE.MACHINE = [ TAG ], from relations.nix.
  problems =
    {
      services,
      machines,
      roles,
    }:
    concatMap (
      instance:
      let
        service = services.${instance};
        unknown = filter (role: !(elem role service.roles)) (attrNames roles.${instance});
      in
      if service.roles == [ ] then
        [
          (at [
            "instances"
            instance
            "module"
          ] "${service.title} has no roles, so it is no service of the inventory.")
        ]
      else
        map (
          role:
          at [
            "instances"
            instance
            "roles"
            role
          ] "${service.title} has no role ${quote role}.${didYouMean role service.roles} It has ${listed service.roles}."
        ) unknown
        ++ tooMany services instance
        ++ missingRoles service instance roles.${instance}
        ++ concatMap (role: roleProblems service machines instance role roles.${instance}.${role}) (
          filter (role: elem role service.roles) (attrNames roles.${instance})
        )
    ) (attrNames services);
}
