# What one machine knows of an instance of zerotier: its network, its members, and their addresses.
{
  lib,
  vars,
  instanceName,
  roles,
  machine,
}:
let
  addresses = import ./addresses.nix;
  controllers = roles.controller.machines or { };
  controller =
    if lib.length (lib.attrNames controllers) == 1 then
      lib.head (lib.attrNames controllers)
    else
      throw "instances.${instanceName} wants exactly one machine in the role controller, and has ${toString (lib.length (lib.attrNames controllers))}.";
  settings = controllers.${controller}.settings;
  members = lib.unique (
    lib.concatMap (role: lib.attrNames role.machines) (lib.attrValues roles)
  );

  network = vars.public {
    generator = "zerotier-network-${instanceName}";
    file = "network-id";
  };

  # The public identity begins with the node's ID. A fleet that comes from Clan's zerotier has the address
  # instead.
  nodeOf =
    machine:
    let
      identity = vars.public {
        generator = "zerotier-node-${machine}";
        file = "identity-public";
      };
      address = vars.public {
        generator = "zerotier-ip-${machine}-${instanceName}";
        file = "ip";
      };
    in
    if identity != null then
      lib.head (lib.splitString ":" identity)
    else if address != null then
      addresses.nodeOf address
    else
      null;

  nodes = lib.genAttrs members nodeOf;
  known = lib.filterAttrs (_: node: node != null) nodes;
  addressesOf = node: map (kind: addresses.${kind} network node) settings.addressing;
in
{
  inherit settings network;
  domain = if settings.domain == null then instanceName else settings.domain;
  known = lib.mapAttrs (_: node: {
    inherit node;
    addresses = if network == null then [ ] else addressesOf node;
  }) known;

  warnings =
    lib.optional (network == null)
      "instances.${instanceName}: the network has no id yet. ${vars.generate} for ${controller} makes it; until then nobody joins."
    ++ map (
      machine:
      "instances.${instanceName}: ${machine} has no identity yet, so it is no member. ${vars.generate} for ${machine} makes it."
    ) (lib.filter (name: nodes.${name} == null && (name == machine || controller == machine)) members);

  assertions = [
    {
      assertion = network == null || addresses.isNetwork network;
      message = "instances.${instanceName}: '${toString network}' is no network id of 16 hexadecimal digits.";
    }
    {
      # The first ten digits of a network's ID are its controller's node.
      assertion =
        network == null
        || nodes.${controller} == null
        || lib.hasPrefix nodes.${controller} network;
      message = "instances.${instanceName}: network ${toString network} does not belong to ${controller}, whose node is ${toString nodes.${controller}}. Put the machine that made the network into the role controller, or generate zerotier-network-${instanceName} anew.";
    }
  ];
}
