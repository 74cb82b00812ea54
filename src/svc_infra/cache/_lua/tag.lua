-- KEYS: tags · ARGV: what a new token begins with, life of the tags · after tokens.lua
return tokens(1)
