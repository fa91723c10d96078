"""The words of the embedded model's domain: every attribute value with its English and Chinese phrase, and its colour where it has one."""
from __future__ import annotations

Phrases = dict[str, tuple[str, str]]

HAIR_COLOURS: Phrases = {
    "black": ("black", "黑色"), "brown": ("brown", "棕色"), "blonde": ("blonde", "金色"), "red": ("red", "红色"),
    "gray": ("gray", "灰色"), "white": ("white", "白色"), "pink": ("pink", "粉色"), "purple": ("purple", "紫色"),
    "blue": ("blue", "蓝色"), "green": ("green", "绿色"),
}
HAIR_HEX = {"black": "#2b2430", "brown": "#6c4332", "blonde": "#e8c15a", "red": "#c8372d", "gray": "#8d8f96", "white": "#f1f0ec",
            "pink": "#f178b6", "purple": "#7a3fb8", "blue": "#2f6fd6", "green": "#2f9e5b"}

HAIR_STYLES: Phrases = {
    "long": ("long hair", "长发"), "bob": ("a bob cut", "波波头"), "bangs": ("a bob with bangs", "斜刘海短发"), "pigtails": ("pigtails", "双马尾"),
    "bun": ("a bun", "丸子头"), "curly": ("big curly hair", "卷发"), "afro": ("a curly high top", "高卷发"), "short": ("short hair", "短发"),
    "mohawk": ("a mohawk", "莫西干头"), "buzz": ("a buzz cut", "寸头"), "bald": ("a bald head", "光头"), "beanie": ("a beanie", "毛线帽"),
}

CLOTHES_COLOURS: Phrases = {
    "red": ("red", "红色"), "orange": ("orange", "橙色"), "yellow": ("yellow", "黄色"), "green": ("green", "绿色"), "blue": ("blue", "蓝色"),
    "purple": ("purple", "紫色"), "pink": ("pink", "粉色"), "white": ("white", "白色"), "black": ("black", "黑色"), "gray": ("gray", "灰色"),
}
CLOTHES_HEX = {"red": "#d6322f", "orange": "#f0862b", "yellow": "#f3c92e", "green": "#2fa052", "blue": "#2d6be0", "purple": "#7741bd",
               "pink": "#ef77b0", "white": "#f4f4f2", "black": "#26262c", "gray": "#85888f"}

CLOTHES: Phrases = {"shirt": ("shirt", "上衣"), "checkered": ("checkered shirt", "格子衬衫"), "sweater": ("sweater", "毛衣")}

SKINS: Phrases = {"light": ("light skin", "白皮肤"), "tan": ("tan skin", "小麦色皮肤"), "brown": ("brown skin", "棕色皮肤"), "dark": ("dark skin", "深色皮肤")}
SKIN_HEX = {"light": "#f3c8b4", "tan": "#d99a72", "brown": "#a8684a", "dark": "#6a4030"}

GLASSES: Phrases = {"none": ("no glasses", "不戴眼镜"), "glasses": ("glasses", "戴眼镜"), "sunglasses": ("sunglasses", "戴墨镜")}

EXPRESSIONS: Phrases = {"smiling": ("smiling", "微笑"), "laughing": ("laughing", "大笑"), "sad": ("sad", "难过"), "surprised": ("surprised", "惊讶")}

EYES: Phrases = {"open": ("open eyes", "睁眼"), "closed": ("closed eyes", "闭眼"), "winking": ("winking", "眨眼")}

BEARDS: Phrases = {"none": ("no beard", "没有胡子"), "beard": ("a beard", "大胡子"), "mustache": ("a mustache", "小胡子"), "goatee": ("a goatee", "山羊胡")}

SUBJECTS: Phrases = {"person": ("person", "人"), "woman": ("woman", "女人"), "girl": ("girl", "女孩"), "man": ("man", "男人"), "boy": ("boy", "男孩")}

BACKGROUNDS: Phrases = {
    "white": ("white", "白色"), "gray": ("gray", "灰色"), "red": ("red", "红色"), "orange": ("orange", "橙色"), "yellow": ("yellow", "黄色"),
    "green": ("green", "绿色"), "teal": ("teal", "青色"), "blue": ("blue", "蓝色"), "purple": ("purple", "紫色"), "pink": ("pink", "粉色"),
    "brown": ("brown", "棕色"), "black": ("black", "黑色"),
}
BACKGROUND_HEX = {"white": "#fbfbf9", "gray": "#bfc3c9", "red": "#e2605c", "orange": "#f4a259", "yellow": "#f7e07a", "green": "#93d38d",
                  "teal": "#4fb9b3", "blue": "#8cc4f3", "purple": "#b598e2", "pink": "#f8b9d2", "brown": "#a07a58", "black": "#24262e"}

SCENES: Phrases = {
    "beach": ("a beach", "海滩"), "city": ("a city", "城市"), "forest": ("a forest", "森林"), "snow": ("snowy mountains", "雪山"),
    "hills": ("green hills", "绿色山丘"), "desert": ("a desert", "沙漠"), "sea": ("the sea", "大海"),
}
TIMES: Phrases = {"day": ("by day", "白天"), "sunset": ("at sunset", "日落"), "night": ("at night", "夜晚")}

OBJECTS: Phrases = {
    "apple": ("a red apple", "红苹果"), "strawberry": ("a strawberry", "草莓"), "banana": ("a banana", "香蕉"), "pizza": ("a pizza", "披萨"),
    "hamburger": ("a hamburger", "汉堡"), "cake": ("a birthday cake", "生日蛋糕"), "cat": ("a cat", "猫"), "dog": ("a dog", "狗"),
    "fox": ("a fox", "狐狸"), "frog": ("a frog", "青蛙"), "panda": ("a panda", "熊猫"), "pig": ("a pig", "猪"), "fish": ("a fish", "鱼"),
    "butterfly": ("a butterfly", "蝴蝶"), "cactus": ("a cactus", "仙人掌"), "pine": ("a pine tree", "松树"), "sunflower": ("a sunflower", "向日葵"),
    "sun": ("the sun", "太阳"), "moon": ("a crescent moon", "月牙"), "star": ("a star", "星星"), "heart": ("a red heart", "红心"), "car": ("a car", "汽车"),
    "bus": ("a bus", "公共汽车"), "rocket": ("a rocket", "火箭"), "sailboat": ("a sailboat", "帆船"), "house": ("a house", "房子"),
    "umbrella": ("an umbrella", "雨伞"), "balloon": ("a balloon", "气球"), "mushroom": ("a mushroom", "蘑菇"), "snowman": ("a snowman", "雪人"),
    "ghost": ("a ghost", "幽灵"), "crown": ("a crown", "皇冠"),
}

ATTRIBUTES: dict[str, Phrases] = {
    "hair colour": {k: (f"{en} hair", f"{zh}头发") for k, (en, zh) in HAIR_COLOURS.items()},
    "hair style": HAIR_STYLES,
    "glasses": GLASSES,
    "expression": EXPRESSIONS,
    "beard": BEARDS,
    "clothes colour": {k: (f"{en} shirt", f"{zh}上衣") for k, (en, zh) in CLOTHES_COLOURS.items()},
    "skin": SKINS,
    "background": {k: (f"{en} background", f"{zh}背景") for k, (en, zh) in BACKGROUNDS.items()},
    "scene": SCENES,
    "time": TIMES,
    "object": OBJECTS,
}
