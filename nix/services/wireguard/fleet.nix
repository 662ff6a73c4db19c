# What one machine knows about an instance of wireguard: its members, their addresses, and who routes for
# whom.
#
# The network is one /64 with a random prefix. A machine's address in it is derived from its name, so nobody
# assigns addresses. Each peer has a home among the controllers, which routes for it; controllers reach one
# another.
{
  lib,
  vars,
  instanceName,
  roles,
}:
let
  ipv6 = import ../common/ipv6.nix;
  controllers = roles.controller.machines or { };
  peers = roles.peer.machines or { };
  machines = lib.attrNames (controllers // peers);

  prefix = vars.public {
    generator = "wireguard-prefix-${instanceName}";
    file = "prefix";
  };
  keyOf =
    machine:
    vars.public {
      inherit machine;
      generator = "wireguard-keys-${instanceName}";
      file = "publickey";
    };

  # The second half of the address.
  suffix = machine: builtins.substring 0 16 (builtins.hashString "sha256" "${instanceName}/${machine}");

  # Where an inventory names no home and there is only one controller, that one is it.
  homeOf =
    peer:
    let
      named = peers.${peer}.settings.controller;
      only = lib.attrNames controllers;
    in
    if named != null then
      if controllers ? ${named} then
        named
      else
        throw "instances.${instanceName}: ${peer} has the controller ${named}, which has no such role. Controllers are: ${lib.concatStringsSep ", " only}."
    else if lib.length only == 1 then
      lib.head only
    else if only == [ ] then
      throw "instances.${instanceName}: there is no machine in the role controller, so nobody can be reached."
    else
      throw "instances.${instanceName}: ${peer} does not say which controller routes for it. Set its settings.controller to one of: ${lib.concatStringsSep ", " only}.";
in
rec {
  inherit
    controllers
    peers
    prefix
    homeOf
    ;
  ready = prefix != null;
  known = lib.filter (machine: keyOf machine != null) machines;
  inherit keyOf;
  address = machine: ipv6.fromHex (prefix + suffix machine);
  subnet = "${ipv6.fromHex (prefix + "0000000000000000")}/64";
  guests =
    controller: lib.filter (peer: homeOf peer == controller && lib.elem peer known) (lib.attrNames peers);
  endpoint = controller: "${ipv6.bracketed controllers.${controller}.settings.endpoint}:${toString controllers.${controller}.settings.port}";
  host = machine: "${address machine}/128";

  # To another controller: its own address, and those of the peers it routes for. A peer's home has the whole
  # network; narrower routes take precedence.
  wayTo =
    controller: self:
    if peers ? ${self} && homeOf self == controller then
      [ subnet ]
    else
      [ (host controller) ] ++ lib.optionals (controllers ? ${self}) (map host (guests controller));

  links =
    self:
    map (controller: {
      name = controller;
      publicKey = keyOf controller;
      allowedIPs = wayTo controller self;
      endpoint = endpoint controller;
      # A home router's NAT lets in only replies to what was sent from inside.
      persistentKeepalive = 25;
    }) (lib.filter (name: name != self && lib.elem name known) (lib.attrNames controllers))
    ++ lib.optionals (controllers ? ${self}) (
      map (peer: {
        name = peer;
        publicKey = keyOf peer;
        allowedIPs = [ (host peer) ];
      }) (guests self)
    );

  warningsFor =
    self:
    lib.optional (!ready)
      "instances.${instanceName}: the network has no prefix yet. ${vars.generate} makes it; until then there is no interface."
    ++ map (
      machine:
      "instances.${instanceName}: ${machine} has no key yet, so it is left out. ${vars.generate} for ${machine} makes it."
    ) (lib.filter (machine: !lib.elem machine known && (machine == self || controllers ? ${self})) machines);

  assertionsFor = self: [
    {
      assertion = !(controllers ? ${self} && peers ? ${self});
      message = "instances.${instanceName}: ${self} is in both roles. A machine is a controller or a peer.";
    }
    {
      assertion = builtins.match "[a-zA-Z0-9_=+.-]{1,15}" instanceName != null;
      message = "wireguard: an interface cannot be named ${instanceName}. Name the instance with at most 15 letters, digits, or _ = + . -";
    }
  ];
}
