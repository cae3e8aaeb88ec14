# cmake -DIN=file -DOUT=file.c -DNAME=symbol -P embed.cmake: a text file as a terminated array of characters.
file(READ ${IN} hex HEX)
string(REPEAT "." 112 line) # sixteen characters
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${hex}")
string(REGEX REPLACE "(${line})" "\\1\n" bytes "${bytes}")
file(WRITE ${OUT} "#include \"server/web.h\"\n\nconst char ${NAME}[] = {\n${bytes}0};\n")
