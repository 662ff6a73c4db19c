{ _class, ... }:
{
  told.extra = _class;
}
