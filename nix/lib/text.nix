# Text for messages. Builtins alone, so that every mistake can be reported without nixpkgs.
let
  inherit (builtins)
    concatStringsSep
    elemAt
    foldl'
    genList
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    stringLength
    substring
    ;

  min = a: b: if a < b then a else b;
  last = items: elemAt items (length items - 1);
  chars = text: genList (n: substring n 1 text) (stringLength text);

  # How many letters to change, add or remove to turn one word into the other (Levenshtein).
  distance =
    from: to:
    let
      goal = chars to;
      columns = genList (n: n) (length goal);
      nextRow =
        above: letter:
        foldl' (
          row: column:
          let
            changed = elemAt above column + (if elemAt goal column == letter then 0 else 1);
            added = last row + 1;
            dropped = elemAt above (column + 1) + 1;
          in
          row ++ [ (min changed (min added dropped)) ]
        ) [ (head above + 1) ] columns;
    in
    last (foldl' nextRow (genList (n: n) (length goal + 1)) (chars from));

  nearest =
    word: known:
    foldl' (
      best: candidate:
      let
        far = distance word candidate;
      in
      if best == null || far < best.far then { inherit far candidate; } else best
    ) null known;
in
rec {
  inherit distance;

  quote = text: "`${text}`";

  # The first of many names, and how many more there are.
  listed =
    names:
    let
      shown = 12;
      count = length names;
    in
    if names == [ ] then
      "none"
    else if count <= shown then
      concatStringsSep ", " names
    else
      "${concatStringsSep ", " (genList (elemAt names) shown)} and ${toString (count - shown)} more";

  # An additional sentence if one of the known words is close, otherwise nothing.
  didYouMean =
    word: known:
    let
      found = nearest word known;
      near = if stringLength word <= 4 then 1 else 2;
    in
    if found != null && found.far <= near then " Did you mean ${quote found.candidate}?" else "";

  # What a value is, for a sentence.
  kind =
    value:
    if value == null then
      "null"
    else if isBool value then
      "a boolean"
    else if isInt value || isFloat value then
      "a number"
    else if isString value then
      "a string"
    else if isPath value then
      "a path"
    else if isList value then
      "a list"
    else if isFunction value then
      "a function"
    else if isAttrs value then
      "a set"
    else
      "something else";

  # `a.b."c d"`: an attribute path in Nix syntax.
  path =
    parts:
    let
      plain = part: builtins.match "[A-Za-z_][A-Za-z0-9_'-]*" part != null;
      written = map (part: if plain part then part else ''"${part}"'') parts;
    in
    concatStringsSep "." written;

  # Each once, in the order of first occurrence.
  unique = foldl' (seen: item: if builtins.elem item seen then seen else seen ++ [ item ]) [ ];
}
